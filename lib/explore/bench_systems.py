"""The systems that `python -m lib bench` compares: one short function each, run in a process of its own.

A process answers one request, `python -m lib.explore.bench_systems '{"kind": ..., "system": ..., ...}'`, with one line of
JSON. Every system gets the same weights, the same documents in token ids and the same labels: the target and its
EOS count, prompts and padding do not. Sources of the peers' settings: trl, docs/source/sft_trainer.md;
transformers, docs/source/en/perplexity.md (one document at a time) and pipeline_tutorial.md;
lm-evaluation-harness, docs/interface.md.
"""

import contextlib
import copy
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from lib import profile, train
from lib.fast import peak_megabytes
from lib.generate import generate
from lib.hub import quiet
from lib.metrics import score_encoded
from lib.models import load_base
from lib.packing import Encoded, draw
from lib.tasks import encode, load_task

MARK = "RESULT "  # what the line of the answer begins with
LEARNING_RATE = 5e-4  # for random weights, in every system; the defaults are for pretrained ones
STEPS = 3  # at least: the first sets up and is not timed


@dataclass(frozen=True)
class System:
    """One row of a table: what runs, and what has to be there for it."""

    run: Callable[..., dict]
    options: dict  # further arguments of `run`
    needs: str = ""  # a name in lib.explore.bench_peers.PEERS, or "gpu"


class Enough(Exception):
    """Raised out of a training that was measured: saving and reloading its weights would tell nothing."""


class Clock(TrainerCallback):
    """Wall seconds and target tokens at the end of each step, the time of own evaluations taken out.

    Ends the training with `Enough` when `seconds` are over, or, given `loss`, when the loss of the `held_out`
    documents has come down to it or `patience` is over.
    """

    def __init__(self, held_out: Sequence[Encoded], seconds: float, loss: float, patience: float):
        self.held_out, self.limit, self.loss, self.patience = held_out, seconds, loss, patience
        self.tokens, self.steps, self.pause, self.begin = 0, [], 0.0, None

    def on_train_begin(self, args, state, control, model=None, **_):
        hook = model.register_forward_pre_hook(self._count, with_kwargs=True)
        self.remove = hook.remove

    def _count(self, module, args, given) -> None:
        if module.training:  # ours passes the positions of the targets, the others labels
            kept, labels = given.get("logits_to_keep"), given.get("labels")
            self.tokens += len(kept) if labels is None and kept is not None else 0
            self.tokens += int((labels != -100).sum()) if labels is not None else 0

    def on_step_begin(self, args, state, control, **_):
        self.begin = self.begin or time.perf_counter()

    def on_step_end(self, args, state, control, model=None, **_):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        row = {"seconds": now - self.begin - self.pause, "tokens": self.tokens}
        if self.loss:
            scores = score_encoded(model, self.held_out)
            row["loss"] = float(scores["nats"].sum() / scores["tokens"].sum())
            self.pause += time.perf_counter() - now
        self.steps.append(row)
        done = row["loss"] <= self.loss if self.loss else True
        over = row["seconds"] >= (self.limit if done else self.patience)
        if len(self.steps) >= STEPS and over:
            self.remove()
            raise Enough


def measured(request: dict, base, start: Callable[[Clock, list[Encoded]], object]) -> dict:
    """Train until the clock has enough: steps (seconds, tokens and, in a first run, loss after each), peak memory.

    `start` is given the clock and the drawn documents, prompt + target tokens in the order of a seed.
    """
    load, task = request["load"], load_task("debian")
    held_out = encode(base.tokenizer, task.validation[: load["held_out"]], base.context)
    loss = load["loss"] if request["run"] == 0 else 0.0
    clock = Clock(held_out, load["seconds"], loss, load["patience"])
    documents = draw(encode(base.tokenizer, task.train, base.context), load["train_tokens"], seed=0)
    torch.manual_seed(0)
    with contextlib.suppress(Enough):
        start(clock, documents)
    if len(clock.steps) < STEPS:
        raise RuntimeError(f"{len(clock.steps)} steps are too few to measure: raise train_tokens.")
    return {"steps": clock.steps, "peak_megabytes": peak_megabytes()}


# --- training: request, base, options -> steps and peak memory


def train_ours(request: dict, base, **overrides) -> dict:
    """lib.train.finetune's own loop with the profile's packing; its model is a copy of the base, as for a user."""
    load = request["load"]
    chosen = {
        "train_tokens": load["train_tokens"],
        "learning_rate": LEARNING_RATE,
        "evaluations": 1,
        "validation_documents": 1,
        **overrides,
    }
    task = load_task("debian")
    settings = train.settings_for("full", 0, task, **chosen)
    with tempfile.TemporaryDirectory() as folder:
        return measured(
            request,
            base,
            lambda clock, _: train._train(base, task, settings, Path(folder), draw, None, (clock,), quiet=True),
        )


def _arguments(kind: type, folder: str, **options):
    """A peer's own arguments, with what every measurement shares."""
    return kind(
        output_dir=folder,
        learning_rate=LEARNING_RATE,
        num_train_epochs=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        **options,
    )


def labelled(document: Encoded) -> dict:
    """input_ids and labels of a document, -100 on its prompt."""
    ids, n = document.input_ids, max(document.prompt_length, 1)
    return {"input_ids": ids, "labels": [-100] * n + ids[n:]}


def train_trl(request: dict, base, **options) -> dict:
    """trl's SFTTrainer on documents in token ids; what `options` does not name is its default."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    class Counted(SFTTrainer):  # it takes the labels out before the model sees them
        def compute_loss(self, model, inputs, *args, **kwargs):
            self.clock.tokens += int((inputs["labels"] != -100).sum())
            return super().compute_loss(model, inputs, *args, **kwargs)

    def start(clock: Clock, documents: list[Encoded]) -> None:
        clock._count = lambda *_: None
        with tempfile.TemporaryDirectory() as folder:
            trainer = Counted(
                model=copy.deepcopy(base.model),
                args=_arguments(SFTConfig, folder, **options),
                train_dataset=Dataset.from_list([labelled(d) for d in documents]),
                processing_class=base.tokenizer,
                callbacks=[clock],
            )
            trainer.clock = clock
            trainer.train()

    return measured(request, base, start)


def train_tutorial(request: dict, base, **options) -> dict:
    """transformers' Trainer as its tutorials use it: every document padded to one length, float32."""
    width, pad = request["load"]["padded"], base.tokenizer.pad_token_id

    def padded(document: Encoded) -> dict:
        row, n = labelled(document), width - len(document.input_ids)
        mask = [1] * len(row["input_ids"]) + [0] * n
        return {"input_ids": row["input_ids"] + [pad] * n, "attention_mask": mask, "labels": row["labels"] + [-100] * n}

    def start(clock: Clock, documents: list[Encoded]) -> None:
        rows = [padded(d) for d in documents if len(d.input_ids) <= width]
        with tempfile.TemporaryDirectory() as folder:
            Trainer(
                model=copy.deepcopy(base.model),
                train_dataset=rows,
                callbacks=[clock],
                args=_arguments(TrainingArguments, folder, **options),
            ).train()

    return measured(request, base, start)


def train_compiled(request: dict, base, **options) -> dict:
    """A loop around torch.compile, as nanoGPT's train.py: bfloat16, fused AdamW, whole rows of text."""
    return train_trl(request, base, **options, torch_compile=True)


# --- evaluation: nats and target tokens of a share of the held-out documents


def _share(things: Sequence, request: dict) -> list:
    """The part of `things` that falls to this run: together the runs see every one."""
    return list(things[request["run"] :: request["load"]["runs"]])


def scored(request: dict, base, score: Callable[[list[Encoded]], list[float]]) -> dict:
    """seconds, tokens (targets and EOS), nats and bytes of this run's documents; two warm up."""
    task = load_task("debian")
    examples = task.test[: request["load"]["documents"]]
    documents = encode(base.tokenizer, _share(examples, request), base.context)
    score(documents[:2])
    begin = time.perf_counter()
    nats = score(documents)
    seconds = time.perf_counter() - begin
    tokens = sum(len(d.input_ids) - d.prompt_length for d in documents)
    return {
        "seconds": seconds,
        "tokens": tokens,
        "nats": sum(nats),
        "peak_megabytes": peak_megabytes(),
        "bytes": sum(d.target_bytes for d in documents),
    }


def evaluate_ours(request: dict, base) -> dict:
    """lib.metrics.score_encoded: packed rows, logits of the targets alone."""
    return scored(request, base, lambda documents: list(score_encoded(base.model, documents)["nats"]))


def evaluate_tutorial(request: dict, base) -> dict:
    """One document at a time through the model's own loss, float32."""

    @torch.no_grad()
    def score(documents: list[Encoded]) -> list[float]:
        nats = []
        for row in map(labelled, documents):
            ids, labels = (torch.tensor([row[k]], device=base.model.device) for k in row)
            nats.append(float(base.model(ids, labels=labels).loss) * int((labels != -100).sum()))
        return nats

    return scored(request, base, score)


def evaluate_harness(request: dict, base, **options) -> dict:
    """lm-evaluation-harness' HFLM on the same token ids; the default is one document at a time."""
    from lm_eval.models.huggingface import HFLM

    model = HFLM(request["model"], tokenizer=base.tokenizer, device=str(profile.device()), **options)

    def score(documents: list[Encoded]) -> list[float]:
        asked = [(("", ""), d.input_ids[: d.prompt_length], d.input_ids[d.prompt_length :]) for d in documents]
        return [-x for x, _ in model._loglikelihood_tokens(asked, disable_tqdm=True)]

    return scored(request, base, score)


# --- generation: new tokens of a share of the prompts, every continuation of one length


def written(request: dict, base, write: Callable[[list[str], int], object]) -> dict:
    load = request["load"]
    prompts = _share([e.prompt for e in load_task("debian").test[: load["continuations"]]], request)
    write(prompts[:2], 2)
    begin = time.perf_counter()
    write(prompts, load["new_tokens"])
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "tokens": len(prompts) * load["new_tokens"], "peak_megabytes": peak_megabytes()}


def generate_ours(request: dict, base) -> dict:
    """lib.generate: batches of 32 by length, KV cache, bfloat16 where the machine has it."""
    return written(request, base, lambda prompts, n: generate(base.model, base.tokenizer, prompts, n, min_new_tokens=n))


def generate_pipeline(request: dict, base, dtype: str = "float32", **options) -> dict:
    """transformers' pipeline("text-generation"), greedy; the default is one prompt at a time, float32."""
    from transformers import pipeline

    pipe = pipeline(
        "text-generation",
        model=base.model.to(getattr(torch, dtype)),
        tokenizer=base.tokenizer,
        device=profile.device(),
        **options,
    )
    return written(request, base, lambda prompts, n: pipe(prompts, max_new_tokens=n, min_new_tokens=n, do_sample=False))


# --- the ceiling: matrix products alone


def products(request: dict, base, dtype: str) -> dict:
    """GFLOP a second of the matrix products of one training step, forward and both backward ones.

    Each layer's four shapes and the output layer over `product_tokens` rows; one product of 2 m n k FLOP per
    shape and direction is timed, and counts as often as a step has it.
    """
    config = AutoConfig.from_pretrained(request["model"])
    rows = request["load"]["product_tokens"]
    c, kind = config.n_embd, getattr(torch, dtype)
    shapes = {
        (c, 3 * c): config.n_layer,
        (c, c): config.n_layer,
        (c, 4 * c): config.n_layer,
        (4 * c, c): config.n_layer,
        (c, config.vocab_size): 1,
    }
    flop = seconds = 0.0
    for (k, n), times in shapes.items():
        x, w, y = (torch.randn(s, device=profile.device()).to(kind) for s in ((rows, k), (k, n), (rows, n)))
        for a, b in ((x, w), (y, w.T), (x.T, y)):  # output, gradient of the input, of the weight
            flop += times * 2 * rows * k * n
            seconds += times * _second_time(a, b)
    return {"gflops": flop / seconds / 1e9}


def _second_time(a: torch.Tensor, b: torch.Tensor) -> float:
    for _ in range(2):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        begin = time.perf_counter()
        a @ b
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return time.perf_counter() - begin


# The fastest of ten settings tried here: batches of 1 to 16, grouped by length or not, packed, without padding
BEST_TRL = {"bf16": True, "gradient_checkpointing": False, "train_sampling_strategy": "group_by_length"}
SYSTEMS: dict[str, dict[tuple[str, str], System]] = {
    "training": {
        ("ours", "default"): System(train_ours, {}),
        ("trl", "default"): System(train_trl, {}, "trl"),
        ("trl", "best"): System(train_trl, BEST_TRL, "trl"),
        # 2 rows of 512 tokens, not Trainer's 8, which take half of a minute a step on two cores
        ("tutorial", "default"): System(train_tutorial, {"per_device_train_batch_size": 2}),
        ("compiled", "default"): System(train_compiled, BEST_TRL, "gpu"),
    },
    "evaluation": {
        ("ours", "default"): System(evaluate_ours, {}),
        ("tutorial", "default"): System(evaluate_tutorial, {}),
        ("lm-eval", "default"): System(evaluate_harness, {}, "lm-eval"),
        ("lm-eval", "best"): System(evaluate_harness, {"batch_size": 16, "dtype": "bfloat16"}, "lm-eval"),
    },
    "generation": {
        ("ours", "default"): System(generate_ours, {}),
        ("pipeline", "default"): System(generate_pipeline, {}),
        ("pipeline", "best"): System(generate_pipeline, {"batch_size": 32, "dtype": "bfloat16"}),
    },
    "ceiling": {
        ("products", "float32"): System(products, {"dtype": "float32"}),
        ("products", "bfloat16"): System(products, {"dtype": "bfloat16"}),
    },
}


def answer(request: dict) -> dict:
    """Run what `request` names: kind, system, setting, run, model (a folder) and load (Performance's fields)."""
    os.environ["BASE_MODEL"] = request["model"]
    system = SYSTEMS[request["kind"]][request["system"], request["setting"]]
    with quiet(bars=True):
        base = None if request["kind"] == "ceiling" else load_base()  # products need no weights
        if base and request["system"] != "ours":  # the others get transformers' model as it comes
            model = AutoModelForCausalLM.from_pretrained(request["model"], dtype=torch.float32, use_safetensors=True)
            base = replace(base, model=model.eval().to(profile.device()))
        return system.run(request, base, **system.options)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    print(MARK + json.dumps(answer(json.loads(sys.argv[1]))), flush=True)
