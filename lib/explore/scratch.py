"""Small GPT-2s trained from scratch, to compare encodings, positions and attentions one at a time.

A `Recipe` names everything that decides a run; two recipes that differ in one field are a controlled
experiment. Training runs on transformers' Trainer in float32 and is done once: a finished run is kept in
data/runs, named after its recipe and data, and loaded the next time.
"""

import hashlib
import json
import math
import os
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from tqdm.auto import tqdm
from transformers import GPT2LMHeadModel, PrinterCallback, ProgressCallback, Trainer, TrainingArguments

from lib import profile
from lib.explore.attention import use_attention
from lib.explore.encodings import Encoding, train_encoding
from lib.explore.positions import use_position
from lib.hub import quiet as silenced
from lib.models import small_gpt2
from lib.results import device_name, write_json
from lib.tasks import load_task
from lib.train import Bar, StepClock


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
    summary: dict  # the recipe's fields, tokens, bytes, steps, parameters, tokens_per_second, device


def build(
    encoding: Encoding | int,
    position: str = "learned",
    attention: str = "softmax_sdpa",
    n_positions: int = 256,
    n_layer: int = 4,
    n_head: int = 4,
    n_embd: int = 128,
    seed: int = 0,
    **options,
) -> GPT2LMHeadModel:
    """A GPT2LMHeadModel with random weights and the named variants, float32, eval mode.

    `encoding` is one of lib.explore.encodings, or a vocabulary size; `options` go to the attention. No dropout: these
    runs see little text more than once. GELU is the same tanh form as GPT-2's, by torch's fused kernel, which
    makes a step a third shorter. Raises ValueError for an unknown name or a combination that does not fit.
    """
    vocab_size = encoding if isinstance(encoding, int) else encoding.vocab_size
    model = small_gpt2(
        vocab_size,
        n_layer,
        n_head,
        n_embd,
        n_positions,
        seed,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        activation_function="gelu_pytorch_tanh",
        loss_type="ForCausalLM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        use_position(model, position)
    return use_attention(model, attention, **options)


# --- text as one stream of tokens


def documents(corpus: str, split: str = "train", n_bytes: int | None = None, seed: int | None = None) -> list[str]:
    """Prompt + target of a split's documents until `n_bytes` are reached, in an order drawn from `seed`
    (None: the task's own). All are taken once before any is taken again.
    """
    examples = getattr(_task(corpus), split)
    texts = [e.prompt + e.target for e in examples]
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


# corpus -> the one whose encodings it takes; others have their own
ENCODED_LIKE: dict[str, str] = {}


def encoding_of(corpus: str, name: str, vocab_size: int | None) -> Encoding:
    """The encoding `name` trained on the whole training split of `corpus`, once per process."""
    return _encoding_of(ENCODED_LIKE.get(corpus, corpus), name, vocab_size)


@cache
def _encoding_of(corpus: str, name: str, vocab_size: int | None) -> Encoding:
    return train_encoding(name, documents(corpus), vocab_size)


def stream(encoding: Encoding, texts: Sequence[str]) -> torch.Tensor:
    """(N,) token ids: EOS, document, EOS, document, ..., EOS."""
    end = encoding.eos_token_id
    ids = [end]
    for document in encoding.encode_batch(list(texts)):
        ids += [*document, end]
    return torch.tensor(ids)


def length_for(encoding: Encoding, corpus: str, context_bytes: int) -> int:
    """The number of tokens that hold `context_bytes` of the corpus's text on average."""
    texts = documents(corpus, "validation")
    tokens = sum(map(len, encoding.encode_batch(texts)))
    return max(round(context_bytes * tokens / sum(len(t.encode("utf-8")) for t in texts)), 2)


def expected_tokens(recipe: Recipe) -> int:
    """Tokens, EOS included, of `recipe.train_bytes` of the training split in its own order: a run's own count
    differs a little, by the documents that its seed draws and by whole steps.
    """
    texts = documents(recipe.corpus, "train", recipe.train_bytes)
    n_bytes = sum(len(t.encode("utf-8")) for t in texts)
    encoding = encoding_of(recipe.corpus, recipe.encoding, recipe.vocab_size)
    return round(recipe.train_bytes * (len(stream(encoding, texts)) - 1) / n_bytes)


def flops(recipe: Recipe, tokens: int) -> float:
    """Floating-point operations of training on `tokens` tokens, a multiplication and an addition as two:
    tokens * (6 * non-embedding parameters + 6 * V * n_embd + 6 * n_layer * n_embd * train_length).

    2 per weight forward and 4 backward, the output layer among the weights; the last term is what causal
    attention does with half of a row on average (Kaplan et al. 2020, arXiv:2001.08361, section 2.1).
    """
    width, vocab_size = (recipe.n_embd, encoding_of(recipe.corpus, recipe.encoding, recipe.vocab_size).vocab_size)
    blocks = recipe.n_layer * (12 * width**2 + 13 * width)  # GPT-2's: weights, then biases and norms
    attention = recipe.n_layer * width * recipe.train_length
    return 6.0 * tokens * (blocks + vocab_size * width + attention)


def at_equal_compute(recipe: Recipe, budget: float) -> Recipe:
    """`recipe` with the text, in whole 1,000 bytes, on which its training costs `budget` floating-point operations."""
    share = budget / flops(recipe, expected_tokens(recipe))
    return replace(recipe, train_bytes=1_000 * max(round(recipe.train_bytes * share / 1_000), 1))


def training_speed(recipes: Sequence[Recipe], steps: int = 8, rounds: int = 3) -> pd.DataFrame:
    """Training steps of the recipes against the clock: corpus, encoding, vocab_size, position, attention,
    train_length, tokens_per_second and bytes_per_second of text (medians of `rounds` rounds of `steps` steps).

    The recipes take turns, so that whatever else the machine does meets them all. Random token ids: a step takes
    as long for any text. The Trainer's own work between steps, the same for all, is left out.
    """
    timers = [_step_timer(recipe) for recipe in recipes]
    taken = [[] for _ in recipes]
    for timer in timers:
        timer(2)  # first steps allocate and are slower
    for _ in tqdm(range(rounds), desc="rounds"):
        for timer, seconds in zip(timers, taken, strict=True):
            seconds.append(timer(steps))
    rows = []
    for recipe, seconds in zip(recipes, taken, strict=True):
        speed = steps * recipe.rows * recipe.train_length / statistics.median(seconds)
        encoding = encoding_of(recipe.corpus, recipe.encoding, recipe.vocab_size)
        rows.append(
            {
                "corpus": recipe.corpus,
                "encoding": recipe.encoding,
                "vocab_size": encoding.vocab_size,
                "position": recipe.position,
                "attention": recipe.attention,
                "train_length": recipe.train_length,
                "tokens_per_second": speed,
                "bytes_per_second": speed * recipe.train_bytes / expected_tokens(recipe),
            }
        )
    return pd.DataFrame(rows)


def _step_timer(recipe: Recipe) -> Callable[[int], float]:
    """A function that trains so many steps of `recipe` and gives the seconds they took."""
    encoding = encoding_of(recipe.corpus, recipe.encoding, recipe.vocab_size)
    model = (
        build(
            encoding,
            recipe.position,
            recipe.attention,
            recipe.n_positions,
            recipe.n_layer,
            recipe.n_head,
            recipe.n_embd,
            recipe.seed,
        )
        .to(profile.device())
        .train()
    )
    optimizer = torch.optim.AdamW(model.parameters(), recipe.learning_rate, fused=True)
    generator = torch.Generator().manual_seed(recipe.seed)
    shape = (recipe.rows, recipe.train_length + 1)
    ids = torch.randint(encoding.vocab_size, shape, generator=generator).to(profile.device())

    def seconds(steps: int) -> float:
        begin = time.perf_counter()
        for _ in range(steps):
            _shifted_loss(model(ids[:, :-1], use_cache=False), ids[:, 1:]).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        if profile.device().type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    return seconds


# --- training


def run_path(recipe: Recipe) -> Path:
    """data/runs/scratch-<task>-<variants>-seed<seed>-<hash>: another recipe or dataset is another folder."""
    task = _task(recipe.corpus)
    identity = json.dumps([asdict(recipe), task.sha256], sort_keys=True)
    parts = [task.name, recipe.encoding, str(recipe.vocab_size or ""), recipe.position, recipe.attention]
    digest = hashlib.sha256(identity.encode()).hexdigest()[:10]
    name = "-".join(["scratch", *filter(None, parts), f"seed{recipe.seed}", digest])
    return profile.output_root() / "data" / "runs" / name


def train(recipe: Recipe, quiet: bool = True) -> Trained:
    """The model of `recipe`, trained now or loaded from data/runs. A run knows its recipe and data, not the code behind
    a variant's name: whoever changes that deletes the variant's runs.

    Raises ValueError for unknown names or too little text, RuntimeError where another process is at it.
    """
    encoding = encoding_of(recipe.corpus, recipe.encoding, recipe.vocab_size)
    model = build(
        encoding,
        recipe.position,
        recipe.attention,
        recipe.n_positions,
        recipe.n_layer,
        recipe.n_head,
        recipe.n_embd,
        recipe.seed,
    ).to(profile.device())
    path = run_path(recipe)
    if not (path / "run.json").exists():
        path.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(path / ".lock", timeout=0):
                _train(recipe, encoding, model, path, quiet)
        except Timeout:
            raise RuntimeError(
                f"{path} is being trained by another process: wait for it, or stop it and run again."
            ) from None
    try:
        summary = json.loads((path / "run.json").read_text(encoding="utf-8"))
        load_model(model, path / "model.safetensors", device=str(profile.device()))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete the folder, run again.") from error
    return Trained(model.eval(), encoding, recipe, summary)


def train_all(recipes: Sequence[Recipe], desc: str = "runs") -> list[Trained]:
    """`train` each, under one progress bar."""
    bar = tqdm(recipes, desc=desc)
    return [train(recipe) for recipe in bar]


def _rows(ids: torch.Tensor, length: int) -> list[dict[str, torch.Tensor]]:
    """Rows of length + 1 tokens that overlap by one, so that each token but the first is a target once."""
    count = (len(ids) - 1) // length
    return [{"ids": ids[i * length : (i + 1) * length + 1]} for i in range(count)]


def _collate(batch: Sequence[dict]) -> dict[str, torch.Tensor]:
    ids = torch.stack([row["ids"] for row in batch])  # (rows, T + 1)
    return {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}


def _shifted_loss(outputs, labels, num_items_in_batch=None) -> torch.Tensor:
    """Mean nats per token; `labels` are the next tokens already, all of them."""
    return F.cross_entropy(outputs.logits.flatten(0, 1).float(), labels.flatten())


def _train(recipe: Recipe, encoding: Encoding, model: GPT2LMHeadModel, path: Path, quiet: bool) -> None:
    texts = documents(recipe.corpus, "train", recipe.train_bytes, recipe.seed)
    data = _rows(stream(encoding, texts), recipe.train_length)
    steps = len(data) // recipe.rows
    if steps < 1:
        raise ValueError(
            f"{len(data)} rows of {recipe.train_length} tokens do not fill one step of {recipe.rows}: raise "
            "train_bytes, or lower rows or train_length."
        )
    args = TrainingArguments(
        output_dir=str(path / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=recipe.rows,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(round(recipe.warmup_share * steps), 1),
        weight_decay=0.1,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        use_cpu=profile.device().type == "cpu",
        save_strategy="no",  # a run takes a minute or two: it starts again rather than resumes
        logging_steps=max(steps // 20, 1),
        seed=recipe.seed,
        remove_unused_columns=False,
        dataloader_pin_memory=profile.device().type == "cuda",
        report_to="none",
        disable_tqdm=quiet,
    )
    clock = StepClock()
    model.config.use_cache = False
    trainer = Trainer(model.train(), args, _collate, data, compute_loss_func=_shifted_loss, callbacks=[clock])
    trainer.remove_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback):
        trainer.add_callback(Bar)
    with silenced(bars=True):
        trainer.train()
    model.config.use_cache = True
    tokens = steps * recipe.rows * recipe.train_length
    record = {
        **asdict(recipe),
        "steps": steps,
        "tokens": tokens,
        "parameters": model.num_parameters(),
        "non_embedding_parameters": sum(p.numel() for p in model.transformer.h.parameters()),
        "tokens_per_second": tokens / clock.seconds,
        "seconds": clock.seconds,
        "device": device_name(),
        "train_loss": [[e["step"], e["loss"]] for e in trainer.state.log_history if "loss" in e],
    }
    save_model(model, str(path / "model.part"))
    os.replace(path / "model.part", path / "model.safetensors")
    write_json(path / "run.json", record)  # the mark of a finished run
    shutil.rmtree(path / "trainer", ignore_errors=True)


# --- scoring a stream


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


def held_out(corpus: str, n_bytes: int) -> list[str]:
    """Leading test documents, `n_bytes` of text."""
    return documents(corpus, "test", n_bytes)


@torch.no_grad()
def score_stream(
    model: GPT2LMHeadModel,
    encoding: Encoding,
    texts: Sequence[str],
    length: int,
    stride: int | None = None,
    batch_tokens: int = 8_192,
    first: int | None = None,
) -> StreamScore:
    """Negative log-likelihood of `texts` as one stream, in windows of `length` tokens, the first one of `first`.

    `stride` = `length` (the default): blocks without overlap, where a block's first tokens have little before
    them. A smaller stride slides the window: each step scores `stride` new tokens, which see at least
    length - stride tokens before them (Press et al. 2022, appendix B, compare the two).
    """
    stride = length if stride is None else stride
    if not 1 <= stride <= length:
        raise ValueError(f"stride={stride} must lie between 1 and length={length}.")
    if not any(texts):
        raise ValueError("No text to score: pass some documents.")
    ids = stream(encoding, texts)
    inputs, targets = ids[:-1], ids[1:]
    spans = []  # (window's start, first scored, end)
    scored = 0
    while scored < len(inputs):
        end = scored + (stride if scored else first or length)
        spans.append((max(end - length, 0), scored, min(end, len(inputs))))
        scored = end
    nats = np.empty(len(inputs))
    position = np.empty(len(inputs), dtype=int)
    model.eval()
    by_size = {}  # windows of one size make a batch without padding
    for span in spans:
        by_size.setdefault(span[2] - span[0], []).append(span)
    for size, group in by_size.items():
        batch = max(batch_tokens // size, 1)
        for at in range(0, len(group), batch):
            part = group[at : at + batch]
            x = torch.stack([inputs[start:end] for start, _, end in part]).to(model.device)
            logits = model(x, use_cache=False).logits.float().cpu()
            for row, (start, first, end) in zip(logits, part, strict=True):
                loss = F.cross_entropy(row[first - start :], targets[first:end], reduction="none")
                nats[first:end] = loss.numpy()
                position[first:end] = range(first - start + 1, end - start + 1)
    n_bytes = sum(len(t.encode("utf-8")) for t in texts)
    return StreamScore(nats, position, n_bytes, sum(encoding.unknown_bits(t) for t in texts))


def quality(runs: Sequence[Trained], texts: Sequence[str]) -> pd.DataFrame:
    """Held-out bits per byte in windows of the trained length that slide by half: attention, position, seed,
    bits_per_byte, tokens, parameters.
    """
    rows = []
    for run in tqdm(runs, desc="held out"):
        length = run.recipe.train_length
        score = score_stream(run.model, run.encoding, texts, length, max(length // 2, 1))
        rows.append(
            {
                "attention": run.recipe.attention,
                "position": run.recipe.position,
                "seed": run.recipe.seed,
                "bits_per_byte": score.bits_per_byte,
                "tokens": run.summary["tokens"],
                "parameters": run.summary["parameters"],
            }
        )
    return pd.DataFrame(rows)


# --- evaluation at other lengths than the trained one


def extrapolation(
    runs: Sequence[Trained], texts: Sequence[str], multiples: Sequence[int] = (1, 2, 4, 8)
) -> pd.DataFrame:
    """Bits per byte at `multiples` of the trained length: position, train_length, eval_length, protocol, seed,
    bits_per_byte. protocol "blocks": no overlap; "sliding": a quarter of the window at a time, so that every
    token after the first window sees at least three quarters of it.
    """
    rows = []
    for run in tqdm(runs, desc="lengths"):
        for multiple in multiples:
            length = multiple * run.recipe.train_length
            for protocol, stride in (("blocks", length), ("sliding", max(length // 4, 1))):
                score = score_stream(run.model, run.encoding, texts, length, stride)
                rows.append(
                    {
                        "position": run.recipe.position,
                        "train_length": run.recipe.train_length,
                        "eval_length": length,
                        "protocol": protocol,
                        "seed": run.recipe.seed,
                        "bits_per_byte": score.bits_per_byte,
                    }
                )
    return pd.DataFrame(rows)


def loss_by_position(
    runs: Sequence[Trained], texts: Sequence[str], length: int, bins: int = 8, shifts: int = 8
) -> pd.DataFrame:
    """Mean bits per token by how many tokens the model saw, in `bins` equal steps of blocks of `length`: position (the
    variant), attention, seed, seen (the middle of the step), bits_per_token.

    The text is cut `shifts` times, at other places each time, and its first `length` tokens, which no cut moves far
    back in a block, are left out: with shifts = bins every token is counted once in each step. Cut once, a step
    would hold one part of the text and the next step another, and the curve would show which part is harder.
    Raises ValueError for a text that fills no further block.
    """
    rows = []
    for run in tqdm(runs, desc="loss by position"):
        nats, step = [], []
        for first in range(length, 0, -max(length // shifts, 1)):
            score = score_stream(run.model, run.encoding, texts, length, first=first)
            if len(score.nats) <= length:
                raise ValueError(f"{len(score.nats)} tokens fill one block of {length} at most: pass more text.")
            nats.append(score.nats[length:])
            step.append((score.position[length:] - 1) * bins // length)
        nats, step = np.concatenate(nats), np.concatenate(step)
        for b in range(bins):
            if (step == b).any():
                rows.append(
                    {
                        "position": run.recipe.position,
                        "attention": run.recipe.attention,
                        "seed": run.recipe.seed,
                        "seen": (b + 0.5) * length / bins,
                        "bits_per_token": float(nats[step == b].mean() / math.log(2)),
                    }
                )
    return pd.DataFrame(rows)
