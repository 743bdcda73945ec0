"""What common evaluation mistakes do to a ranking: small models of our own, ranked soundly and with each mistake.

All models are lib.explore.scratch's, trained here. Rows: trap, model, seed, sound (the sound measure), trapped (what the
mistake measures instead); lower is better in both. `summary` turns them into rankings.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy import stats

from lib import profile, results, tasks
from lib.explore import scratch
from lib.explore.attention import ATTENTIONS, Attention, register, softmax
from lib.explore.costs import leak
from lib.explore.scratch import Recipe, Trained
from lib.metrics import mean_interval

LENGTH = 128  # tokens in a row
LEAKED, LEAKING = "debian_leaked", "leaking"
MODELS = {  # what differs from the plain recipe
    "plain": {},
    "one layer": {"n_layer": 1},
    "half the text": {"train_bytes": 0.5},  # of the budget
    "RoPE": {"position": "rope"},
    "no positions": {"position": "none"},
    "linear attention": {"position": "rope", "attention": "linear"},
}
ENCODINGS = {"bytes": None, "bpe 512": 512, "bpe 1024": 1_024, "bpe 4096": 4_096}


def recipe(seed: int, **changes) -> Recipe:
    """The plain recipe under the profile's budget; `train_bytes` below 1 is a share of it."""
    p = profile.current().innovation
    plain = Recipe(
        seed=seed,
        train_length=LENGTH,
        n_positions=LENGTH,
        train_bytes=p.trap_bytes,
        n_layer=p.trap_layers,
        n_embd=p.trap_width,
    )
    share = changes.get("train_bytes", 1)
    return replace(plain, **changes | {"train_bytes": round(p.trap_bytes * share)})


def train_models(seeds: Sequence[int]) -> dict[tuple[str, int], Trained]:
    """(model, seed) -> run, for every entry of MODELS."""
    wanted = [(name, seed) for seed in seeds for name in MODELS]
    runs = scratch.train_all([recipe(seed, **MODELS[name]) for name, seed in wanted], "models")
    return dict(zip(wanted, runs, strict=True))


def held_out(split: str = "test") -> list[str]:
    return scratch.documents("debian", split, profile.current().innovation.trap_eval_bytes)


def bits_per_byte(run: Trained, texts: Sequence[str]) -> float:
    return scratch.score_stream(run.model, run.encoding, texts, LENGTH).bits_per_byte


def _rows(trap: str, found) -> list[dict]:
    columns = ("model", "seed", "sound", "trapped")
    return [{"trap": trap} | dict(zip(columns, row, strict=True)) for row in found]


# --- the mistakes, one function each


def own_samples(runs: dict, texts: Sequence[str]) -> list[dict]:
    """Perplexity of what the model itself wrote: low for a model that repeats itself."""
    return _rows(
        "own samples",
        [(name, seed, bits_per_byte(run, texts), sample_perplexity(run)) for (name, seed), run in runs.items()],
    )


@torch.no_grad()
def sample_perplexity(run: Trained, samples: int = 16) -> float:
    """exp of the mean nats of the model's own samples (temperature 0.8, top-p 0.9), LENGTH - 1 tokens each."""
    start = torch.full((samples, 1), run.encoding.eos_token_id, device=run.model.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.recipe.seed)
        ids = run.model.generate(
            start,
            attention_mask=torch.ones_like(start),
            do_sample=True,
            temperature=0.8,
            top_p=0.9,
            top_k=0,
            max_new_tokens=LENGTH - 1,
            use_cache=run.recipe.attention.startswith("softmax"),
        )
    logits = run.model(ids[:, :-1], use_cache=False).logits
    return math.exp(float(F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())))


def padding_counted(runs: dict, texts: Sequence[str]) -> list[dict]:
    """Labels are a copy of the padded input: EOS after EOS counts as text, the more the shorter a document is."""
    return _rows(
        "padding counted",
        [(name, seed, bits_per_byte(run, texts), padded_perplexity(run, texts)) for (name, seed), run in runs.items()],
    )


@torch.no_grad()
def padded_perplexity(run: Trained, texts: Sequence[str], counted: bool = True) -> float:
    """exp of the mean nats over documents padded with EOS to LENGTH + 1 tokens (longer ones are cut), the padding
    `counted` or masked.
    """
    end = run.encoding.eos_token_id
    coded = [[end, *d, end][: LENGTH + 1] for d in run.encoding.encode_batch(list(texts))]
    ids = torch.tensor([d + [end] * (LENGTH + 1 - len(d)) for d in coded], device=run.model.device)
    real = torch.tensor([[t < len(d) for t in range(1, LENGTH + 1)] for d in coded], device=ids.device)
    logits = run.model(ids[:, :-1], use_cache=False).logits
    nats = F.cross_entropy(logits.mT.float(), ids[:, 1:], reduction="none")  # (N, T)
    return math.exp(float((nats if counted else nats[real]).mean()))


def token_perplexity(seeds: Sequence[int], texts: Sequence[str]) -> tuple[list[dict], str]:
    """Perplexity per token of models whose tokens differ in size, and where the rows are from: notebook 04's shipped
    results where they are there, else models trained now.
    """
    trap = "token perplexity across tokenizers"
    try:
        kept = results.load("04_token_encoding", profile.ROOT / "data" / "results")
        found = [r for r in kept["tables"]["encodings"] if (r["corpus"], r["budget"]) == ("debian", "bytes")]
        names = [f"{r['encoding']} {r['vocab_size']}" for r in found]
        rows = [(n, r["seed"], r["bits_per_byte"], r["perplexity"]) for n, r in zip(names, found, strict=True)]
        return _rows(trap, rows), f"data/results/04_token_encoding.json, {kept['provenance']['profile']}"
    except FileNotFoundError:
        return _rows(trap, trained_encodings(seeds, texts)), "models trained in this notebook"


def trained_encodings(seeds: Sequence[int], texts: Sequence[str]) -> list[tuple]:
    """(model, seed, bits per byte, perplexity per token) of every entry of ENCODINGS at equal bytes."""
    found = []
    for seed, (name, size) in itertools.product(seeds, ENCODINGS.items()):
        run = scratch.train(recipe(seed, encoding=name.split()[0], vocab_size=size))
        score = scratch.score_stream(run.model, run.encoding, texts, LENGTH)
        found.append((name, seed, score.bits_per_byte, math.exp(score.nats.mean())))
    return found


def overlap(runs: dict, seeds: Sequence[int]) -> list[dict]:
    """Two models more, whose training text holds the test documents: ranked on those documents, and on others."""
    names = ("plain", "one layer")
    every = {key: run for key, run in runs.items() if key[0] in (*names, "half the text", "RoPE")}
    with leaked_corpus():
        for seed, name in itertools.product(seeds, names):
            changes = MODELS[name] | {"corpus": LEAKED}
            every[f"{name}, test text in training", seed] = scratch.train(recipe(seed, **changes))
    sound, seen = held_out("validation"), held_out("test")
    return _rows(
        "overlapping train and test",
        [(name, seed, bits_per_byte(run, sound), bits_per_byte(run, seen)) for (name, seed), run in every.items()],
    )


@contextmanager
def leaked_corpus() -> Iterator[None]:
    """Inside, a task LEAKED: debian whose training split is the held-out test text, and as much again of its own.
    Each document is then seen several times, as a benchmark is that stands on many pages of the web. The encoding is
    debian's own, as the other models have it.
    """
    debian = tasks.load_task("debian")
    n_test, n_train = len(held_out("test")), len(held_out("train"))
    train = debian.test[:n_test] + debian.train[:n_train]
    name = f"{debian.sha256}, test {n_test} and train {n_train} in training"
    leaked = replace(debian, name=LEAKED, train=train, sha256=name)
    tasks.TASKS[LEAKED] = lambda: leaked
    scratch.ENCODED_LIKE[LEAKED] = "debian"
    try:
        yield
    finally:
        del tasks.TASKS[LEAKED], scratch.ENCODED_LIKE[LEAKED]


def leaking_attention(runs: dict, seeds: Sequence[int], texts: Sequence[str]) -> list[dict]:
    """One model more, whose mask is off by one: a token sees the next. Soundly, a token is scored from its prefix."""
    every = dict(runs)
    with leaking_entry():
        for seed in seeds:
            run = scratch.train(recipe(seed, position="rope", attention=LEAKING))
            every["mask off by one", seed] = run
        return _rows(
            "leaking attention",
            [
                (name, seed, prefix_bits_per_byte(run, texts), prefix_bits_per_byte(run, texts, False))
                for (name, seed), run in every.items()
            ],
        )


@contextmanager
def leaking_entry() -> Iterator[None]:
    """Inside, an attention LEAKING: softmax over everything up to the next token."""

    def form(q, k, v, scale, **_):
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(1)
        return softmax(q, k, v, scale, seen)

    register(LEAKING, Attention(form, form))
    try:
        yield
    finally:
        del ATTENTIONS[LEAKING]


@torch.no_grad()
def prefix_bits_per_byte(
    run: Trained, texts: Sequence[str], prefix: bool = True, rows: int = 16, length: int = 48
) -> float:
    """Bits per byte of `rows` rows of `length` tokens, each token from a text that ends before it; not `prefix`:
    all of a row in one pass, which is the same for a causal model and only for one. Bytes are the stream's
    average per token.
    """
    ids = scratch.stream(run.encoding, texts)
    per_token = sum(len(t.encode("utf-8")) for t in texts) / (len(ids) - 1)
    rows = min(rows, (len(ids) - 1) // length)
    ids = ids[: rows * length].view(rows, length).to(run.model.device)
    if prefix:
        ends = [run.model(ids[:, :t], use_cache=False).logits[:, -1] for t in range(1, length)]
        logits = torch.stack(ends, dim=1)
    else:
        logits = run.model(ids[:, :-1], use_cache=False).logits
    nats = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
    return float(nats) / math.log(2) / per_token


def leaks(seeds: Sequence[int]) -> float:
    """The future-leak test of the model whose mask is off by one."""
    with leaking_entry():
        run = scratch.train(recipe(seeds[0], position="rope", attention=LEAKING))
        return leak(run.model, 40)


def one_seed(df: pd.DataFrame) -> list[dict]:
    """df: model, seed, bits_per_byte. The mean over seeds, against each seed by itself; nothing where there is one."""
    if df["seed"].nunique() < 2:
        return []
    means = df.groupby("model")["bits_per_byte"].mean()
    return _rows("one seed", [(r.model, r.seed, means[r.model], r.bits_per_byte) for r in df.itertuples()])


# --- rankings


def means(part: pd.DataFrame) -> pd.DataFrame:
    """Per model of one trap's values sound and trapped, means over seeds; for "one seed" the seed whose own ranking
    differs most from the mean's.
    """
    if part["trap"].iloc[0] != "one seed":
        return part.groupby("model", sort=False)[["sound", "trapped"]].mean()
    alone = [own.set_index("model")[["sound", "trapped"]] for _, own in part.groupby("seed")]
    return max(alone, key=lambda m: flips(m["sound"], m["trapped"]))


def summary(values: pd.DataFrame) -> pd.DataFrame:
    """One row per trap: models, seeds, ranking_sound and ranking_trap (best first, by means over seeds; for "one
    seed" that of the seed that differs most), tau (Kendall's, between the two), pairs, flips (pairs that the two
    order differently), shown_pairs (those that the seeds of the sound measure tell apart: `separable`), shown_flips
    (flips among these), best_changes.
    """
    rows = []
    for trap, part in values.groupby("trap", sort=False):
        found = means(part)
        sound, trapped = found["sound"], found["trapped"]
        orders = [x.sort_values(kind="stable").index for x in (sound, trapped)]
        # for "one seed" `sound` is the mean, and the seeds' own values stand in `trapped`
        wide = part.pivot(index="seed", columns="model", values="trapped" if trap == "one seed" else "sound")
        apart = [list(p) for p in itertools.combinations(found.index, 2) if separable(wide, *p)]
        rows.append(
            {
                "trap": trap,
                "models": len(found),
                "seeds": part["seed"].nunique(),
                "ranking_sound": " < ".join(orders[0]),
                "ranking_trap": " < ".join(orders[1]),
                "tau": float(stats.kendalltau(sound, trapped).statistic),
                "pairs": math.comb(len(found), 2),
                "flips": flips(sound, trapped),
                "shown_pairs": len(apart),
                "shown_flips": sum(flips(sound[pair], trapped[pair]) for pair in apart),
                "best_changes": orders[0][0] != orders[1][0],
            }
        )
    return pd.DataFrame(rows)


def flips(a: pd.Series, b: pd.Series) -> int:
    """How many pairs of models the two measures order differently."""
    pairs = itertools.combinations(range(len(a)), 2)
    return sum((a.iloc[i] - a.iloc[j]) * (b.iloc[i] - b.iloc[j]) < 0 for i, j in pairs)


def no_interval(df: pd.DataFrame) -> dict:
    """df: model, seed, bits_per_byte. The ranking by means alone against what paired 95 % t intervals over seeds
    support: `flips` are the pairs that are ordered without their difference being shown.
    """
    wide = df.pivot(index="seed", columns="model", values="bits_per_byte")
    order = wide.mean().sort_values(kind="stable").index
    unsure = {pair for pair in itertools.combinations(order, 2) if not separable(wide, *pair)}
    text = order[0]
    for a, b in itertools.pairwise(order):
        text += f"{' = ' if (a, b) in unsure else ' < '}{b}"
    return {
        "trap": "no interval",
        "models": len(order),
        "seeds": len(wide),
        "ranking_sound": text,
        "ranking_trap": " < ".join(order),
        "tau": math.nan,
        "pairs": math.comb(len(order), 2),
        "flips": len(unsure),
        "shown_pairs": math.comb(len(order), 2) - len(unsure),
        "shown_flips": 0,
        "best_changes": (order[0], order[1]) in unsure,
    }


def separable(wide: pd.DataFrame, a: str, b: str) -> bool:
    """Whether the paired interval of a - b over seeds excludes 0; one seed separates nothing."""
    _, low, high = mean_interval((wide[a] - wide[b]).dropna())
    return bool(np.isfinite(low) and low * high > 0)


def as_frame(runs: dict, measure: Callable[[Trained], float]) -> pd.DataFrame:
    """model, seed, bits_per_byte."""
    rows = [(name, seed, measure(run)) for (name, seed), run in runs.items()]
    return pd.DataFrame(rows, columns=["model", "seed", "bits_per_byte"])
