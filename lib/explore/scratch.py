"""Small GPT-2s trained from scratch, to compare encodings, positions and attentions one at a time.

A `Recipe` names everything that decides a run; two recipes that differ in one field are a controlled experiment. It is
trained once, by transformers' Trainer in float32: a finished run is kept in data/runs."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_model, save_model
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from transformers import GPT2LMHeadModel, PrinterCallback, Trainer, TrainingArguments, default_data_collator

from lib import models, packing, profile, results, tasks
from lib.explore.attention import use_attention
from lib.explore.encodings import Encoding, train_encoding
from lib.explore.positions import use_position

_task = cache(tasks.load_task)
ENCODED_LIKE: dict[str, str] = {}  # corpus -> the one whose encodings it takes; others have their own


@dataclass(frozen=True)
class Recipe:
    """One training run from scratch. Lengths in tokens, amounts of text in UTF-8 bytes."""

    seed: int
    corpus: str = "debian"  # a name in lib.tasks: prompt and target of its documents
    encoding: str = "bpe"
    vocab_size: int | None = 1024  # None where the encoding fixes it
    position: str = "learned"
    attention: str = "softmax_sdpa"
    train_length: int = 256  # tokens in a row
    rows: int = 4  # in one optimizer step
    train_bytes: int = 1_000_000  # text seen; no document twice before all were
    n_positions: int = 256  # rows of a learned table
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    learning_rate: float = 4e-3  # best of 1e-3, 2e-3, 4e-3 for softmax on 1 MB, one seed each
    warmup_share: float = 0.1


@dataclass
class Trained:
    model: GPT2LMHeadModel  # float32, eval mode, on profile.device()
    encoding: Encoding
    recipe: Recipe
    summary: dict  # the recipe's fields, steps, tokens, parameters, non_embedding_parameters

    def bits_per_byte(self, texts: Sequence[str]) -> float:
        """Of held-out text as one stream, in rows of the trained length."""
        return score_stream(self.model, self.encoding, texts, self.recipe.train_length).bits_per_byte


def build(vocab_size: int, position="learned", attention="softmax_sdpa", seed=0, **shape) -> GPT2LMHeadModel:
    """A GPT2LMHeadModel with random weights and the named variants, float32, eval mode; `shape` is small_gpt2's
    (n_positions, n_layer, n_head, n_embd). No dropout: these runs see little text more than once. GELU is GPT-2's tanh
    form, by torch's fused kernel. Raises ValueError for an unknown name."""
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    fixed = {"activation_function": "gelu_pytorch_tanh", "loss_type": "ForCausalLM"}
    model = models.small_gpt2(vocab_size, seed=seed, **shape, **no_dropout, **fixed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        use_position(model, position)
    return use_attention(model, attention)


def model_of(recipe: Recipe) -> GPT2LMHeadModel:
    """The untrained model of `recipe`, on profile.device()."""
    encoding = encoding_of(recipe.corpus, recipe.encoding, recipe.vocab_size)
    shape = {key: getattr(recipe, key) for key in ("n_positions", "n_layer", "n_head", "n_embd")}
    return build(encoding.vocab_size, recipe.position, recipe.attention, recipe.seed, **shape).to(profile.device())


def documents(corpus: str, split: str = "train", n_bytes: int | None = None, seed: int | None = None) -> list[str]:
    """Prompt + target of a split's documents until `n_bytes` are reached, in an order drawn from `seed` (None: the
    task's own). All are taken once before any is taken again."""
    texts = [row["prompt"] + row["target"] for row in tasks.head(_task(corpus)[split])]
    return texts if n_bytes is None else packing.draw(texts, n_bytes, seed, lambda text: len(text.encode("utf-8")))


@cache
def encoding_of(corpus: str, name: str, vocab_size: int | None) -> Encoding:
    """The encoding `name` trained on the whole training split of `corpus`, once per process."""
    if like := ENCODED_LIKE.get(corpus):
        return encoding_of(like, name, vocab_size)
    return train_encoding(name, documents(corpus), vocab_size)


def stream(encoding: Encoding, texts: Sequence[str]) -> torch.Tensor:
    """(N,) token ids: EOS, document, EOS, document, ..., EOS."""
    end = encoding.eos_token_id
    return torch.tensor([end, *(i for document in encoding.encode_batch(texts) for i in [*document, end])])


def run_path(recipe: Recipe) -> Path:
    """data/runs/scratch-<task>-<variants>-seed<seed>-<hash>: another recipe or dataset is another folder."""
    task = _task(recipe.corpus)
    digest = hashlib.sha256(json.dumps([asdict(recipe), task.sha256], sort_keys=True).encode()).hexdigest()[:10]
    parts = [task.name, recipe.encoding, str(recipe.vocab_size or ""), recipe.position, recipe.attention]
    name = "-".join(["scratch", *filter(None, parts), f"seed{recipe.seed}", digest])
    return profile.output_root() / "data" / "runs" / name


def train(recipe: Recipe) -> Trained:
    """The model of `recipe`, trained now or loaded from data/runs. A run knows its recipe and data, not the code behind
    a variant's name: whoever changes that deletes its runs. Raises ValueError for unknown names or too little text."""
    model, path = model_of(recipe), run_path(recipe)
    encoding = encoding_of(recipe.corpus, recipe.encoding, recipe.vocab_size)
    if not (path / "run.json").exists():
        _train(recipe, encoding, model, path)
    summary = json.loads((path / "run.json").read_text(encoding="utf-8"))
    load_model(model, path / "model.safetensors", device=str(profile.device()))
    return Trained(model.eval(), encoding, recipe, summary)


def train_all(recipes: Sequence[Recipe], desc: str = "runs") -> list[Trained]:
    """`train` each, under one progress bar."""
    return [train(recipe) for recipe in tqdm(recipes, desc=desc)]


def shifted_loss(outputs, labels, num_items_in_batch=None) -> torch.Tensor:
    """Mean nats per token; `labels` are the next tokens already, all of them."""
    return cross_entropy(outputs.logits.flatten(0, 1).float(), labels.flatten())


def _train(recipe: Recipe, encoding: Encoding, model: GPT2LMHeadModel, path: Path) -> None:
    ids = stream(encoding, documents(recipe.corpus, "train", recipe.train_bytes, recipe.seed))
    n, starts = recipe.train_length, range(0, len(ids) - recipe.train_length, recipe.train_length)
    # the labels are the next tokens: each but the first is a target once
    data = [{"input_ids": ids[i : i + n], "labels": ids[i + 1 : i + 1 + n]} for i in starts]
    steps = len(data) // recipe.rows
    if steps < 1:
        raise ValueError(f"{len(data)} rows of {n} do not fill one step: raise train_bytes.")
    # a run takes a minute or two: it starts again rather than resumes
    settings = {"save_strategy": "no", "logging_strategy": "no", "report_to": "none", "disable_tqdm": True}
    settings |= {"max_steps": steps, "per_device_train_batch_size": recipe.rows, "seed": recipe.seed}
    settings |= {"learning_rate": recipe.learning_rate, "lr_scheduler_type": "cosine", "weight_decay": 0.1}
    settings |= {"warmup_steps": max(round(recipe.warmup_share * steps), 1), "optim": "adamw_torch_fused"}
    device = profile.device().type
    settings |= {"use_cpu": device == "cpu", "dataloader_pin_memory": device == "cuda", "remove_unused_columns": False}
    model.config.use_cache = False
    args = TrainingArguments(str(path / "trainer"), **settings)
    trainer = Trainer(model.train(), args, default_data_collator, data, compute_loss_func=shifted_loss)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    model.config.use_cache = True
    counts = {"steps": steps, "tokens": steps * recipe.rows * recipe.train_length, "parameters": model.num_parameters()}
    counts["non_embedding_parameters"] = sum(p.numel() for p in model.transformer.h.parameters())
    path.mkdir(parents=True, exist_ok=True)
    save_model(model, str(path / "model.safetensors"))
    results.write_json(path / "run.json", asdict(recipe) | counts)  # the mark of a finished run
    profile.remove(path / "trainer", needed=False)


@dataclass(frozen=True)
class StreamScore:
    """Every token of a stream but the first, scored once."""

    nats: np.ndarray  # (N - 1,)
    position: np.ndarray  # (N - 1,) how many tokens the model saw before it predicted this one
    n_bytes: int
    unknown_bits: float  # to spell out what became UNK

    @property
    def bits_per_byte(self) -> float:
        """Sum of nats / ln 2 and the unknown's bits, over the UTF-8 bytes; EOS has nats and no byte."""
        return float((self.nats.sum() / math.log(2) + self.unknown_bits) / self.n_bytes)


@torch.no_grad()
def score_stream(model, encoding, texts, length: int, stride=None, batch_tokens=8_192, first=None) -> StreamScore:
    """Negative log-likelihood of `texts` as one stream, in windows of `length` tokens, the first one of `first`.
    `stride` = `length` (the default): blocks without overlap. A smaller one slides the window: each step scores that
    many new tokens, which see at least length - stride before them (Press et al. 2022, appendix B, compare the two)."""
    stride, first = length if stride is None else stride, first or length
    if not 1 <= stride <= length or not any(texts):
        raise ValueError(f"stride={stride} must lie between 1 and length={length}, and there must be text to score.")
    ids = stream(encoding, texts)
    inputs, targets = ids[:-1], ids[1:]
    by_size: dict[int, list] = {}  # (window's start, first scored, end); windows of one size need no padding
    ends = range(first, max(len(inputs) + stride, first + 1), stride)
    for scored, end in zip([0, *ends], ends, strict=False):
        start, end = max(end - length, 0), min(end, len(inputs))
        by_size.setdefault(end - start, []).append((start, scored, end))
    nats, position = np.empty(len(inputs)), np.empty(len(inputs), dtype=int)
    model.eval()
    for size, spans in by_size.items():
        windows = torch.stack([inputs[start:end] for start, _, end in spans]).to(model.device)
        batches = windows.split(max(batch_tokens // size, 1))
        logits = (row for batch in batches for row in model(batch, use_cache=False).logits.float().cpu())
        for row, (start, new, end) in zip(logits, spans, strict=True):
            nats[new:end] = cross_entropy(row[new - start :], targets[new:end], reduction="none").numpy()
            position[new:end] = range(new - start + 1, end - start + 1)
    n_bytes = sum(len(t.encode("utf-8")) for t in texts)
    return StreamScore(nats, position, n_bytes, sum(encoding.unknown_bits(t) for t in texts))


def loss_by_position(runs: Sequence[Trained], texts: Sequence[str], length: int, bins=8, shifts=8) -> pd.DataFrame:
    """Mean bits per token by how many tokens the model saw, in `bins` equal steps of blocks of `length`: position (the
    variant), attention, seed, seen (the middle of the step), bits_per_token. The text is cut `shifts` times, at other
    places each time, and its first `length` tokens, which no cut moves far back, are left out: with shifts = bins every
    token is counted once in each step; cut once, each step would hold another part of the text. Raises ValueError for a
    text that fills no further block."""
    rows = []
    for run in tqdm(runs, desc="loss by position"):
        cuts = range(length, 0, -max(length // shifts, 1))
        scores = [score_stream(run.model, run.encoding, texts, length, first=first) for first in cuts]
        if len(scores[0].nats) <= length:
            raise ValueError(f"{len(scores[0].nats)} tokens fill one block of {length} at most: pass more text.")
        steps = np.concatenate([(s.position[length:] - 1) * bins // length for s in scores])
        bits = pd.Series(np.concatenate([s.nats[length:] for s in scores])).groupby(steps).mean() / math.log(2)
        named = {key: getattr(run.recipe, key) for key in ("position", "attention", "seed")}
        rows += [named | {"seen": (b + 0.5) * length / bins, "bits_per_token": x} for b, x in bits.items()]
    return pd.DataFrame(rows)
