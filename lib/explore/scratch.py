"""Small GPT-2s trained from scratch, to compare encodings, positions and attentions one at a time.

A `Recipe` names everything that decides a run; two recipes that differ in one field are a controlled experiment.
Training runs on transformers' Trainer in float32 and is done once: a finished run is kept in data/runs.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import load_model, save_model
from tqdm.auto import tqdm
from transformers import GPT2LMHeadModel, PrinterCallback, Trainer, TrainingArguments

from lib import profile
from lib.explore.attention import use_attention
from lib.explore.encodings import Encoding, train_encoding
from lib.explore.positions import use_position
from lib.models import small_gpt2
from lib.results import write_json
from lib.tasks import load_task


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


def build(encoding, position="learned", attention="softmax_sdpa", seed=0, *, options=None, **shape) -> GPT2LMHeadModel:
    """A GPT2LMHeadModel with random weights and the named variants, float32, eval mode.

    `encoding` is one of lib.explore.encodings, or a vocabulary size; `options` go to the attention, `shape` is
    small_gpt2's (n_positions, n_layer, n_head, n_embd). No dropout: these runs see little text more than once. GELU is
    GPT-2's tanh form, by torch's fused kernel. Raises ValueError for an unknown name or what does not fit together."""
    vocab_size = encoding if isinstance(encoding, int) else encoding.vocab_size
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    fixed = {"activation_function": "gelu_pytorch_tanh", "loss_type": "ForCausalLM"}
    model = small_gpt2(vocab_size, seed=seed, **shape, **no_dropout, **fixed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        use_position(model, position)
    return use_attention(model, attention, **options or {})


def model_of(recipe: Recipe) -> GPT2LMHeadModel:
    """The untrained model of `recipe`, on profile.device()."""
    encoding = encoding_of(recipe.corpus, recipe.encoding, recipe.vocab_size)
    shape = {key: getattr(recipe, key) for key in ("n_positions", "n_layer", "n_head", "n_embd")}
    return build(encoding, recipe.position, recipe.attention, recipe.seed, **shape).to(profile.device())


def documents(corpus: str, split: str = "train", n_bytes: int | None = None, seed: int | None = None) -> list[str]:
    """Prompt + target of a split's documents until `n_bytes` are reached, in an order drawn from `seed`
    (None: the task's own). All are taken once before any is taken again."""
    texts = [row["prompt"] + row["target"] for row in _task(corpus)[split]]
    if n_bytes is None:
        return texts
    generator = torch.Generator().manual_seed(seed or 0)
    drawn, total = [], 0
    while total < n_bytes:
        order = range(len(texts)) if seed is None else torch.randperm(len(texts), generator=generator).tolist()
        for i in order:
            drawn.append(texts[i])
            total += len(texts[i].encode("utf-8"))
            if total >= n_bytes:
                break
    return drawn


@cache
def _task(corpus: str):
    return load_task(corpus)


ENCODED_LIKE: dict[str, str] = {}  # corpus -> the one whose encodings it takes; others have their own


def encoding_of(corpus: str, name: str, vocab_size: int | None) -> Encoding:
    """The encoding `name` trained on the whole training split of `corpus`, once per process."""
    return _encoding_of(ENCODED_LIKE.get(corpus, corpus), name, vocab_size)


@cache
def _encoding_of(corpus: str, name: str, vocab_size: int | None) -> Encoding:
    return train_encoding(name, documents(corpus), vocab_size)


def stream(encoding: Encoding, texts: Sequence[str]) -> torch.Tensor:
    """(N,) token ids: EOS, document, EOS, document, ..., EOS."""
    end = encoding.eos_token_id
    return torch.tensor([end, *(i for document in encoding.encode_batch(texts) for i in [*document, end])])


def length_for(encoding: Encoding, corpus: str, context_bytes: int) -> int:
    """The number of tokens that hold `context_bytes` of the corpus's text on average."""
    texts = documents(corpus, "validation")
    tokens = sum(map(len, encoding.encode_batch(texts)))
    return max(round(context_bytes * tokens / sum(len(t.encode("utf-8")) for t in texts)), 2)


def run_path(recipe: Recipe) -> Path:
    """data/runs/scratch-<task>-<variants>-seed<seed>-<hash>: another recipe or dataset is another folder."""
    task = _task(recipe.corpus)
    identity = json.dumps([asdict(recipe), task.sha256], sort_keys=True)
    parts = [task.name, recipe.encoding, str(recipe.vocab_size or ""), recipe.position, recipe.attention]
    digest = hashlib.sha256(identity.encode()).hexdigest()[:10]
    name = "-".join(["scratch", *filter(None, parts), f"seed{recipe.seed}", digest])
    return profile.output_root() / "data" / "runs" / name


def train(recipe: Recipe) -> Trained:
    """The model of `recipe`, trained now or loaded from data/runs. A run knows its recipe and data, not the code behind
    a variant's name: whoever changes that deletes the variant's runs.

    Raises ValueError for unknown names or too little text."""
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


def _rows(ids: torch.Tensor, length: int) -> list[torch.Tensor]:
    """Rows of length + 1 tokens that overlap by one, so that each token but the first is a target once."""
    return [ids[i : i + length + 1] for i in range(0, len(ids) - length, length)]


def _collate(rows: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    ids = torch.stack(list(rows))  # (rows, T + 1)
    return {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}


def shifted_loss(outputs, labels, num_items_in_batch=None) -> torch.Tensor:
    """Mean nats per token; `labels` are the next tokens already, all of them."""
    return F.cross_entropy(outputs.logits.flatten(0, 1).float(), labels.flatten())


def _train(recipe: Recipe, encoding: Encoding, model: GPT2LMHeadModel, path: Path) -> None:
    texts = documents(recipe.corpus, "train", recipe.train_bytes, recipe.seed)
    data = _rows(stream(encoding, texts), recipe.train_length)
    steps = len(data) // recipe.rows
    if steps < 1:
        raise ValueError(f"{len(data)} rows of {recipe.train_length} do not fill one step: raise train_bytes.")
    # a run takes a minute or two: it starts again rather than resumes
    silent = {"save_strategy": "no", "logging_strategy": "no", "report_to": "none", "disable_tqdm": True}
    args = TrainingArguments(
        str(path / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=recipe.rows,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(round(recipe.warmup_share * steps), 1),
        weight_decay=0.1,
        optim="adamw_torch_fused",
        seed=recipe.seed,
        use_cpu=profile.device().type == "cpu",
        remove_unused_columns=False,
        dataloader_pin_memory=profile.device().type == "cuda",
        **silent,
    )
    model.config.use_cache = False
    trainer = Trainer(model.train(), args, _collate, data, compute_loss_func=shifted_loss)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    model.config.use_cache = True
    counts = {"steps": steps, "tokens": steps * recipe.rows * recipe.train_length, "parameters": model.num_parameters()}
    counts["non_embedding_parameters"] = sum(p.numel() for p in model.transformer.h.parameters())
    path.mkdir(parents=True, exist_ok=True)
    save_model(model, str(path / "model.safetensors"))
    write_json(path / "run.json", asdict(recipe) | counts)  # the mark of a finished run
    shutil.rmtree(path / "trainer", ignore_errors=True)


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
def score_stream(
    model, encoding: Encoding, texts: Sequence[str], length: int, stride=None, batch_tokens=8_192, first=None
) -> StreamScore:
    """Negative log-likelihood of `texts` as one stream, in windows of `length` tokens, the first one of `first`.

    `stride` = `length` (the default): blocks without overlap. A smaller one slides the window: each step scores that
    many new tokens, which see at least length - stride before them (Press et al. 2022, appendix B, compare the two)."""
    stride = length if stride is None else stride
    if not 1 <= stride <= length or not any(texts):
        raise ValueError(f"stride={stride} must lie between 1 and length={length}, and there must be text to score.")
    ids = stream(encoding, texts)
    inputs, targets = ids[:-1], ids[1:]
    by_size: dict[int, list] = {}  # (window's start, first scored, end); windows of one size need no padding
    scored = 0
    while scored < len(inputs):
        end = scored + (stride if scored else first or length)
        start = max(end - length, 0)
        by_size.setdefault(min(end, len(inputs)) - start, []).append((start, scored, min(end, len(inputs))))
        scored = end
    nats, position = np.empty(len(inputs)), np.empty(len(inputs), dtype=int)
    model.eval()
    for size, spans in by_size.items():
        batch = max(batch_tokens // size, 1)
        for at in range(0, len(spans), batch):
            part = spans[at : at + batch]
            x = torch.stack([inputs[start:end] for start, _, end in part]).to(model.device)
            logits = model(x, use_cache=False).logits.float().cpu()
            for row, (start, new, end) in zip(logits, part, strict=True):
                nats[new:end] = F.cross_entropy(row[new - start :], targets[new:end], reduction="none").numpy()
                position[new:end] = range(new - start + 1, end - start + 1)
    n_bytes = sum(len(t.encode("utf-8")) for t in texts)
    return StreamScore(nats, position, n_bytes, sum(encoding.unknown_bits(t) for t in texts))


def loss_by_position(runs: Sequence[Trained], texts: Sequence[str], length: int, bins=8, shifts=8) -> pd.DataFrame:
    """Mean bits per token by how many tokens the model saw, in `bins` equal steps of blocks of `length`: position (the
    variant), attention, seed, seen (the middle of the step), bits_per_token.

    The text is cut `shifts` times, at other places each time, and its first `length` tokens, which no cut moves far
    back in a block, are left out: with shifts = bins every token is counted once in each step. Cut once, a step would
    hold one part of the text and the next step another. Raises ValueError for a text that fills no further block."""
    rows = []
    for run in tqdm(runs, desc="loss by position"):
        nats, step = [], []
        for first in range(length, 0, -max(length // shifts, 1)):
            score = score_stream(run.model, run.encoding, texts, length, first=first)
            if len(score.nats) <= length:
                raise ValueError(f"{len(score.nats)} tokens fill one block of {length} at most: pass more text.")
            nats.append(score.nats[length:])
            step.append((score.position[length:] - 1) * bins // length)
        bits = pd.Series(np.concatenate(nats)).groupby(np.concatenate(step)).mean() / math.log(2)
        named = {key: getattr(run.recipe, key) for key in ("position", "attention", "seed")}
        rows += [named | {"seen": (b + 0.5) * length / bins, "bits_per_token": x} for b, x in bits.items()]
    return pd.DataFrame(rows)
