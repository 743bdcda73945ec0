"""Is my loss normal? The first steps of a run against its yardsticks, and the fault named in one sentence.

`Watch` keeps what a Trainer's loop really saw: the first batch as it went into the loss, then every step's loss and
gradient norm. `diagnose` asks in the order of Karpathy 2019, "A Recipe for Training Neural Networks": what goes in,
what the loss is at the start, whether it moves and where to."""

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback

from lib import tasks

FAULTS = {  # name -> what a person is told
    "labels": "Labels stand one token early: the model shifts them itself, so give it labels equal to input_ids.",
    "padding": "Labels stand on padding: put -100 there.",
    "end": "No target ends with the end token, so the model will not learn to stop: append it.",
    "positions": "A row holds several documents whose positions do not start anew: each reads the ones before it.",
    "leak": "Documents of the validation or test split are in the batch: train on the training split alone.",
    "shuffled": "Prompts are followed by other documents' targets: keep the two together when you shuffle.",
    "tokenizer": "Decoded, the batch is no text of the task: another tokenizer, or another format, made it.",
    "half": "A number overflowed in float16: train in bfloat16, or in float32 with fp16=True, which scales the loss.",
    "weights": "The loss starts at {first:.2f}, the base model's is {expected:.2f}: its weights were not loaded.",
    "adapter": "No gradient reaches a weight that trains: the adapter is not attached to the model that computes.",
    "frozen": "There are gradients and no weight moves: the optimizer holds other weights, or its rate is 0.",
    "rate": "The loss came to {last:.2f} where the base model has {later:.2f}: take a tenth of the learning rate.",
    "": "Nothing wrong so far: the loss goes from {first:.2f} (base model {expected:.2f}) to {last:.2f} ({later:.2f}).",
}


class Watch(TrainerCallback):
    """`batch` and `latest`: the tensors (B, T) of the first and the last call of `trainer`'s loss; `losses`,
    `gradients` (norms): one a step, so set logging_steps=1 and logging_nan_inf_filter=False."""

    def __init__(self, trainer: Trainer) -> None:
        self.batch, self.losses, self.gradients = {}, [], []
        self.model, self.dtype = trainer.model, trainer.model.dtype
        self._loss, trainer.compute_loss = trainer.compute_loss, self._see
        self._start = self._sums()
        trainer.add_callback(self)

    def _see(self, model, inputs, *args, **options):
        self.latest = {k: v.cpu().clone() for k, v in inputs.items() if torch.is_tensor(v)}
        self.batch = self.batch or self.latest
        return self._loss(model, inputs, *args, **options)

    def _sums(self) -> list[float]:
        return [float(p.detach().double().sum()) for p in self.model.parameters() if p.requires_grad]

    def on_log(self, args, state, control, logs=None, **_):
        if "loss" in (logs or {}):
            self.losses.append(logs["loss"])
            self.gradients += [logs["grad_norm"]] if "grad_norm" in logs else []  # none without max_grad_norm


def diagnose(watch: Watch, base, task: tasks.Task) -> tuple[str, str]:
    """The fault's name in FAULTS, "" for none, and its sentence. `base`: a lib.models.Base, or what has its `model` and
    `tokenizer`. Labels are transformers': equal to input_ids, -100 where nothing is learned."""
    first, last, guess = watch.losses[0], watch.losses[-1], math.log(len(base.tokenizer))
    expected, later = (_nats(base.model, batch) for batch in (watch.batch, watch.latest))
    broken = not all(map(math.isfinite, [*watch.losses, *watch.gradients, *watch._sums()]))
    signs = {
        _in_batch(watch.batch, base.tokenizer, task): True,
        "half": broken and watch.dtype == torch.float16,
        "weights": first > (expected + guess) / 2,
        "adapter": len(watch.gradients) > 0 and not any(watch.gradients),
        "frozen": watch._sums() == watch._start,
        "rate": broken or last > later,  # on the same batch, since batches differ by more than a step changes
    }
    name = next((name for name, seen in signs.items() if name and seen), "")
    return name, FAULTS[name].format(first=first, last=last, expected=expected, later=later)


@torch.no_grad()
def _nats(model, batch: dict[str, Tensor]) -> float:
    """The model's own loss on the batch, a target token."""
    options = {k: batch[k].to(model.device) for k in ("attention_mask", "position_ids") if k in batch}
    logits = model(batch["input_ids"].to(model.device), **options).logits.cpu().float()
    return float(F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()))


def _in_batch(batch: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase, task: tasks.Task) -> str:
    """The fault that the batch itself shows."""
    ids, labels = batch["input_ids"], batch["labels"]
    real, learned = batch.get("attention_mask", torch.ones_like(ids)).bool(), labels != -100
    later = F.pad((ids == tokenizer.eos_token_id) & real, (1, -1)) & real  # first tokens of a row's later documents
    if (labels[:, :-1] == ids[:, 1:])[learned[:, :-1]].float().mean() > 0.9 > (labels == ids)[learned].float().mean():
        return "labels"
    if (learned & ~real).any():
        return "padding"
    if "cu_seq_lens_q" not in batch and batch.get("position_ids", torch.ones_like(ids))[later].any():
        return "positions"
    pairs = {split: [(r["prompt"], r["target"]) for r in tasks.head(task[split])] for split in tasks.SPLITS}
    split_of = {p + t: split for split in reversed(tasks.SPLITS) for p, t in pairs[split]}
    (prompts, targets), found = zip(*pairs["train"], strict=True), [*_documents(ids, learned, real, tokenizer)]
    parts = [split_of.get(p + t) or next((s for k, s in split_of.items() if k.startswith(p + t)), "") for p, t in found]
    unknown = [pair for pair, split in zip(found, parts, strict=True) if not split]
    kinds = {"leak": [split in tasks.SPLITS[1:] for split in parts]}
    kinds |= {"shuffled": [p in prompts and t in targets for p, t in unknown], "tokenizer": unknown}
    kinds["end"] = [not (labels == tokenizer.eos_token_id).any()] * len(found)
    return next((name for name, those in kinds.items() if 2 * sum(map(bool, those)) > len(found)), "")


def _documents(ids: Tensor, learned: Tensor, real: Tensor, tokenizer) -> Iterator[tuple[str, str]]:
    """(prompt, target) of each document of the rows (B, T), without padding, cut at the end tokens."""
    for row, target, kept in zip(ids, learned, real, strict=True):
        row, target = row[kept], target[kept]
        ends = (row == tokenizer.eos_token_id).nonzero().flatten().tolist()
        for before, end in pairwise([-1, *ends, len(row)]):
            part, mark = row[before + 1 : end], target[before + 1 : end]
            if len(part):
                yield tokenizer.decode(part[~mark]), tokenizer.decode(part[mark])
