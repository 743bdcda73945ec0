"""What common evaluation mistakes do to a ranking of small models, and `audit`, which finds them in a results table.

All models are lib.explore.scratch's. Rows of `values`: trap, model, seed, sound (the sound measure), trapped (what the
mistake measures instead); lower is better in both."""

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple
from unittest import mock

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import cross_entropy

from lib import metrics, results, tasks
from lib.explore import scratch

LEAKED = "debian_leaked"  # a task inside `leaked_corpus`


@torch.no_grad()
def prefix_bits_per_byte(run: scratch.Trained, texts: Sequence[str], prefix=True, rows=16, length=48) -> float:
    """Bits per byte of `rows` rows of `length` tokens, each token from a text that ends before it; not `prefix`: all of
    a row in one pass, the same for a causal model and only for one. Bytes are the stream's average per token."""
    ids = scratch.stream(run.encoding, texts)
    per_token = sum(len(t.encode("utf-8")) for t in texts) / (len(ids) - 1)
    rows = min(rows, (len(ids) - 1) // length)
    ids = ids[: rows * length].view(rows, length).to(run.model.device)
    ends = range(1, length) if prefix else [length - 1]
    logits = torch.cat([run.model(ids[:, :t], use_cache=False).logits[:, -1 if prefix else 0 :] for t in ends], dim=1)
    nats = cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
    return float(nats) / math.log(2) / per_token


@contextmanager
def leaked_corpus(n_bytes: int) -> Iterator[None]:
    """Inside, a task LEAKED: debian whose training split is the test text of `n_bytes` bytes, and as much again of its
    own. Each document is then seen several times, as a benchmark is that stands on many pages of the web. The encoding
    is debian's own, as the other models have it."""
    debian = tasks.load_task("debian")
    counts = {split: len(scratch.documents("debian", split, n_bytes)) for split in ("test", "train")}
    train = [row for split, n in counts.items() for row in tasks.head(debian[split], n)]
    splits = {"train": train, "validation": debian["validation"], "test": debian["test"]}
    leaked = tasks.Task(splits, LEAKED, f"{debian.sha256}, of its parts {counts} in training")
    task, encoding = {LEAKED: lambda: leaked}, {LEAKED: "debian"}
    with mock.patch.dict(tasks.TASKS, task), mock.patch.dict(scratch.ENCODED_LIKE, encoding):
        yield


def summary(values: pd.DataFrame) -> pd.DataFrame:
    """One row per trap: models, seeds, ranking_sound and ranking_trap (best first, by means over seeds), tau
    (Kendall's, between the two), pairs, flips (pairs that the two order differently), shown_pairs (those whose paired
    interval over the sound measure's seeds excludes 0), shown_flips (flips among these), best_changes."""
    rows = []
    for trap, part in values.groupby("trap", sort=False):
        found = part.groupby("model", sort=False)[["sound", "trapped"]].mean()
        wide = part.pivot(index="seed", columns="model", values="sound")
        pairs = list(itertools.combinations(found.index, 2))
        turned = {(a, b) for a, b in pairs if (found.loc[a] - found.loc[b]).prod(skipna=False) < 0}
        apart = {(a, b) for a, b in pairs if results.shown(wide[a] - wide[b])}
        sound, trapped = (found[c].sort_values(kind="stable").index for c in ("sound", "trapped"))
        row = {"trap": trap, "models": len(found), "seeds": len(wide), "ranking_sound": " < ".join(sound)}
        row |= {"ranking_trap": " < ".join(trapped), "tau": float(found.corr("kendall").loc["sound", "trapped"])}
        row |= {"pairs": len(pairs), "flips": len(turned), "shown_pairs": len(apart)}
        rows.append(row | {"shown_flips": len(turned & apart), "best_changes": sound[0] != trapped[0]})
    return pd.DataFrame(rows)


MIN_SEEDS = 3  # two give a t interval 6 times as wide as their standard error, three 2.5 times
LEAK_LIMIT = 1e-3  # of a logit; a causal model in float32 shows rounding, about 1e-5
PER_TOKEN = re.compile(r"perplexity|ppl|loss|nll|entropy|per_token")  # in a measure's name
WAYS_OUT = {
    "not declared": "Declare it in the Protocol.",
    "own samples": "Score held-out text that people wrote.",
    "overlapping train and test": "Split by document group, remove near-duplicates first, score the rest again.",
    "padding counted": "Mask it, and divide by the target's own tokens or bytes.",
    "token perplexity across tokenizers": "Compare bits per byte.",
    "different test texts": "Score all of them on one text.",
    "leaking attention": "Repair the mask, train again, and score by prefix until then.",
    "one seed": f"Train {MIN_SEEDS} seeds or more and keep a row per run with its seed, or make no claim of it.",
    "no interval": "Say that no difference is shown, or add seeds.",
}


@dataclass(frozen=True)
class Protocol:
    """What has to be known about a table, which rows cannot show. None: not declared, which `audit` reports. `compare`
    names the columns whose values are compared with each other (a method), `within` those inside whose values (a task).
    """

    metric: str = "bits_per_byte"
    compare: tuple[str, ...] = ("method",)
    within: tuple[str, ...] = ()
    text: str | None = None  # "held-out", "training" or "own samples": what was scored
    padding_counted: bool | None = None  # in the loss
    overlap: int | None = None  # test documents that training also saw
    tokenizer: str | None = None  # one name, or "column:NAME" of the column that tells
    leak: float | None = None  # largest change of an earlier logit when later tokens change


class Finding(NamedTuple):
    trap: str  # a key of WAYS_OUT
    where: str  # the row, the column or the declaration
    problem: str
    way_out: str


def audit(rows: pd.DataFrame | Sequence[Mapping], protocol: Protocol) -> list[Finding]:
    """All findings of a results table (flat rows, one measurement each), none for a sound one. Rows without training,
    such as a base model's, need no seeds: leave them out. Raises ValueError for a missing column."""
    df, p = pd.DataFrame(rows), protocol
    column = p.tokenizer.removeprefix("column:") if p.tokenizer and p.tokenizer.startswith("column:") else p.metric
    if missing := [c for c in (p.metric, *p.compare, *p.within, column) if c not in df]:
        raise ValueError(f"The table has no column {missing[0]!r}; it has {', '.join(map(str, df))}.")
    found = [*_declared(df, p), *_ratios(df, p), *_seeds(df[df[p.metric].notna()], p)]
    return [Finding(*f, WAYS_OUT[f[0]]) for f in found]


def _declared(df: pd.DataFrame, p: Protocol) -> Iterator[tuple[str, str, str]]:
    for name in ("text", "padding_counted", "overlap", "tokenizer", "leak"):
        if getattr(p, name) is None:
            yield "not declared", name, f"nothing says what Protocol({name}=...) is."
    if p.text == "own samples":
        yield p.text, p.metric, "a model was scored on text that it wrote itself."
    if p.overlap or p.text == "training":
        seen = f"{p.overlap} test" if p.overlap else "the scored"
        yield "overlapping train and test", "overlap", f"training saw {seen} documents."
    if p.padding_counted:
        yield "padding counted", p.metric, "padding is in the mean."
    if p.leak is not None and not abs(p.leak) <= LEAK_LIMIT:  # a nan is a finding too
        yield "leaking attention", "leak", f"later tokens change earlier logits by {p.leak:.3g}."
    if PER_TOKEN.search(p.metric) and p.tokenizer and p.tokenizer.startswith("column:"):
        column = df[p.tokenizer.removeprefix("column:")]
        names = max((column[part.index].unique() for _, part in _groups(df, p.within)), key=len)
        if len(names) > 1:
            problem = f"a measure per token is compared between {', '.join(map(str, names))}."
            yield "token perplexity across tokenizers", p.metric, problem


def _ratios(df: pd.DataFrame, p: Protocol) -> Iterator[tuple[str, str, str]]:
    """Where numerator and denominator stand beside a ratio, they must give it, and all rows have the same bytes."""
    for name, part in _groups(df, p.within) if "bytes" in df else ():
        if (n := part["bytes"].nunique()) > 1:
            yield "different test texts", f"{name}, bytes".removeprefix(", "), f"{n} sizes of the text that was scored."
    forms = {"perplexity": ("tokens", np.exp), "bits_per_byte": ("bytes", lambda x: x / math.log(2))}
    for ratio, (parts, form) in forms.items():
        known = df.reindex(columns=[ratio, "nats", parts]).dropna()
        for i, value, wanted in zip(known.index, known[ratio], form(known["nats"] / known[parts]), strict=True):
            if not math.isclose(value, wanted, rel_tol=1e-3):
                problem = f"{value:.4g} is not what nats and {parts} of the row give."
                yield "padding counted", f"row {i}, {ratio}", problem


def _groups(df: pd.DataFrame, columns: Sequence[str]) -> Iterator[tuple[str, pd.DataFrame]]:
    """("column=value, ...", rows) for the values of `columns`; all rows for none."""
    for key, part in df.groupby(list(columns), sort=False, dropna=False) if columns else [((), df)]:
        yield ", ".join(f"{c}={v}" for c, v in zip(columns, key, strict=True)), part


def _seeds(df: pd.DataFrame, p: Protocol) -> Iterator[tuple[str, str, str]]:
    """Groups with too few seeds or copied runs, and pairs whose paired difference no interval shows."""
    if "seed" not in df:
        yield "one seed", "seed", "no column tells the seed, so runs were averaged or there is one."
        return
    for name, part in _groups(df, [*p.within, *p.compare]):
        n = part["seed"].nunique()
        if n < MIN_SEEDS:
            yield "one seed", name, f"{n} seed{'s' * (n > 1)}."
        if n > 1 and part[p.metric].nunique() == 1 and part[p.metric].iloc[0] not in (0, 1):  # a share may reach both
            yield "one seed", name, f"{n} seeds with one value to the last digit: a run that was copied."
        if len(part) > n:
            yield "one seed", name, f"{len(part)} rows for {n} seeds: name what differs in `compare` or `within`."
    for name, part in _groups(df, p.within):
        wide = part.pivot_table(index="seed", columns=list(p.compare), values=p.metric, aggfunc="mean")
        for a, b in itertools.combinations(wide.columns, 2):
            gaps = (wide[a] - wide[b]).dropna()
            mean, low, high = metrics.mean_interval(gaps) if len(gaps) else (np.nan,) * 3
            if not np.isfinite(low) or low * high <= 0:
                span = f"[{low:+.3g}, {high:+.3g}]" if np.isfinite(low) else f"missing (shared seeds: {len(gaps)})"
                pair = " against ".join(" / ".join(map(str, x)) if isinstance(x, tuple) else str(x) for x in (a, b))
                problem = f"the paired difference of {p.metric} is {mean:+.3g}, its 95 % interval {span}."
                yield "no interval", f"{name}: {pair}".removeprefix(": "), problem
