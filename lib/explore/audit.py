"""`audit`: flags evaluation traps in a results table, from its rows and from what is declared about them.

The rows are the results contract's: flat, one measurement each. What rows cannot show (whether padding was counted,
whether train and test overlap, whether the attention was tested for leaks) has to be declared; what is not
declared is a finding too.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import pandas as pd

from lib import profile, results
from lib.metrics import mean_interval

MIN_SEEDS = 3  # two give a t interval 6 times as wide as their standard error, three 2.5 times
LEAK_LIMIT = 1e-3  # of a logit; a causal model in float32 shows rounding, about 1e-5
PER_TOKEN = ("perplexity", "nats_per_token", "bits_per_token", "token_perplexity", "loss")


@dataclass(frozen=True)
class Protocol:
    """What has to be known about a table. None: not declared, which `audit` reports.

    `compare` names the columns whose values are compared with each other (a method, a model); `within` the columns
    inside whose values they are (a task, a protocol). `claims`: pairs (better, worse) of values of `compare` that a
    text derives from the table; None: every difference is claimed.
    """

    metric: str = "bits_per_byte"
    compare: tuple[str, ...] = ("method",)
    within: tuple[str, ...] = ()
    seed: str = "seed"
    lower_is_better: bool = True
    text: str | None = None  # "held-out", "training" or "own samples": what was scored
    padding_counted: bool | None = None
    overlap: int | None = None  # test documents that training also saw
    tokenizer: str | None = None  # one name, or "column:NAME" of the column that tells
    leak: float | None = None  # largest change of an earlier logit when later tokens change
    exempt: Mapping[str, object] = field(default_factory=dict)  # rows without training: no seeds needed
    only: Mapping[str, tuple] = field(default_factory=dict)  # values of a column whose rows take part
    claims: tuple[tuple[object, object], ...] | None = None


@dataclass(frozen=True)
class Finding:
    trap: str
    where: str  # the row, the column or the declaration
    problem: str
    way_out: str

    def __str__(self) -> str:
        return f"{self.trap}: {self.where}: {self.problem} {self.way_out}"


def audit(rows: pd.DataFrame | Sequence[Mapping], protocol: Protocol) -> list[Finding]:
    """All findings, none for a sound table. Raises ValueError for an empty table or a column it does not have."""
    df = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    if df.empty:
        raise ValueError("An audit of no row: pass the rows of a results table.")
    p = protocol
    named = [p.metric, *p.compare, *p.within, *p.exempt, *p.only]
    if protocol.tokenizer and protocol.tokenizer.startswith("column:"):
        named.append(protocol.tokenizer.removeprefix("column:"))
    if missing := [c for c in named if c not in df]:
        raise ValueError(f"The table has no column {missing[0]!r}; it has {', '.join(map(str, df))}.")
    for column, values in p.only.items():
        df = df[df[column].isin(values)]
    if df.empty:
        raise ValueError(f"No row is left of those that take part: {dict(p.only)}; check the values.")
    known = set(df[list(p.compare)].itertuples(index=False, name=None))
    for value in itertools.chain.from_iterable(p.claims or ()):
        if (value if isinstance(value, tuple) else (value,)) not in known:
            raise ValueError(f"A claim names {value!r}, which {', '.join(p.compare)} never is: check it.")
    return [f for check in CHECKS for f in check(df, p)]


def as_table(findings: Sequence[Finding]) -> pd.DataFrame:
    return pd.DataFrame([vars(f) for f in findings], columns=[f.name for f in fields(Finding)])


# --- the checks


def _undeclared(df: pd.DataFrame, p: Protocol) -> Iterator[Finding]:
    for name, question in (
        ("text", "which text was scored"),
        ("padding_counted", "whether padding counts in the loss"),
        ("overlap", "how many test documents training saw"),
        ("tokenizer", "which tokenizer the tokens are of"),
        ("leak", "what the future-leak test gave"),
    ):
        if getattr(p, name) is None:
            yield Finding("not declared", name, f"nothing says {question}.", f"Declare Protocol({name}=...).")


def _own_samples(df: pd.DataFrame, p: Protocol) -> Iterator[Finding]:
    if p.text == "own samples":
        yield Finding(
            "own samples",
            p.metric,
            "a model was scored on text that it wrote itself.",
            "Score held-out text that people wrote.",
        )


def _overlap(df: pd.DataFrame, p: Protocol) -> Iterator[Finding]:
    if p.overlap or p.text == "training":
        seen = f"{p.overlap} test documents" if p.overlap else "the scored documents"
        yield Finding(
            "overlapping train and test",
            "overlap",
            f"training saw {seen}.",
            "Split by document group, remove near-duplicates first, score the rest again.",
        )


def _padding(df: pd.DataFrame, p: Protocol) -> Iterator[Finding]:
    if p.padding_counted:
        yield Finding("padding counted", p.metric, "padding is in the mean.", "Mask it and divide by real tokens.")
    yield from _ratio(df, "perplexity", ("nats", "tokens"), lambda r: math.exp(r["nats"] / r["tokens"]))
    yield from _ratio(df, "bits_per_byte", ("nats", "bytes"), lambda r: r["nats"] / r["bytes"] / math.log(2))


def _ratio(df: pd.DataFrame, column: str, parts: tuple[str, str], wanted) -> Iterator[Finding]:
    """Where numerator and denominator stand beside a ratio, they must give it."""
    if not {column, *parts} <= set(df):
        return
    for i, row in df.dropna(subset=[column, *parts]).iterrows():
        if (row[parts[1]] <= 0) or not math.isclose(row[column], wanted(row), rel_tol=1e-3):
            yield Finding(
                "padding counted",
                f"row {i}, {column}",
                f"{row[column]:.4g} is not what {parts[0]} and {parts[1]} of the row give.",
                "Divide by the target's own tokens or bytes, without padding.",
            )


def _across_tokenizers(df: pd.DataFrame, p: Protocol) -> Iterator[Finding]:
    if p.metric not in PER_TOKEN:
        return
    if p.tokenizer and p.tokenizer.startswith("column:"):
        column = p.tokenizer.removeprefix("column:")
        groups = df.groupby(list(p.within)) if p.within else [("", df)]
        names = max((part[column].unique() for _, part in groups), key=len)
        if len(names) > 1:
            yield Finding(
                "token perplexity across tokenizers",
                p.metric,
                f"a measure per token is compared between {', '.join(map(str, names))}.",
                "Compare bits per byte.",
            )


def _leak(df: pd.DataFrame, p: Protocol) -> Iterator[Finding]:
    if p.leak is not None and not p.leak <= LEAK_LIMIT:  # a nan is a finding too
        yield Finding(
            "leaking attention",
            "leak",
            f"later tokens change earlier logits by {p.leak:.3g}.",
            "Repair the mask, train again, and score by prefix until then.",
        )
    for column in ("future_leak", "leak", "max_leak"):
        for i, value in df[column].dropna().items() if column in df else ():
            if not abs(value) <= LEAK_LIMIT:
                yield Finding(
                    "leaking attention",
                    f"row {i}, {column}",
                    f"{value:.3g} is not 0.",
                    "Repair the mask and train again, or leave the row out.",
                )


def _trained(df: pd.DataFrame, p: Protocol) -> pd.DataFrame:
    """The rows that need seeds."""
    keep = pd.Series(True, df.index)
    for column, value in p.exempt.items():
        keep &= df[column] != value
    return df[keep & df[p.metric].notna()]


def _groups(df: pd.DataFrame, columns: Sequence[str]) -> Iterator[tuple[str, pd.DataFrame]]:
    for key, part in df.groupby(list(columns), sort=False, dropna=False):
        yield ", ".join(f"{c}={v}" for c, v in zip(columns, key, strict=True)), part


def _seeds(df: pd.DataFrame, p: Protocol) -> Iterator[Finding]:
    if p.seed not in df:
        yield Finding(
            "one seed",
            p.seed,
            "no column tells the seed, so runs were averaged or there is one.",
            "Keep one row per run with its seed.",
        )
        return
    for name, part in _groups(_trained(df, p), [*p.within, *p.compare]):
        n = part[p.seed].nunique()
        if n < MIN_SEEDS:
            yield Finding(
                "one seed",
                name,
                f"{n} seed{'s' * (n > 1)}.",
                f"Train {MIN_SEEDS} seeds or more, or make no claim of it.",
            )
        if len(part) > n:
            yield Finding(
                "one seed",
                name,
                f"{len(part)} rows for {n} seeds: other things differ between them.",
                "Name the column that differs in `compare` or `within`.",
            )


def _intervals(df: pd.DataFrame, p: Protocol) -> Iterator[Finding]:
    if p.seed not in df:
        return
    for name, part in _groups(_trained(df, p), p.within) if p.within else [("", _trained(df, p))]:
        wide = part.pivot_table(index=p.seed, columns=list(p.compare), values=p.metric, aggfunc="mean")
        pairs = itertools.combinations(wide.columns, 2) if p.claims is None else p.claims
        for a, b in pairs:
            if a not in wide or b not in wide:
                continue
            mean, low, high = mean_interval((wide[a] - wide[b]).dropna())
            wrong = p.claims is not None and (mean > 0) == p.lower_is_better
            if wrong or not np.isfinite(low) or low * high <= 0:
                span = f"[{low:+.3g}, {high:+.3g}]" if np.isfinite(low) else "of one seed"
                where = f"{name}: {_text(a)} against {_text(b)}".removeprefix(": ")
                turned = "The claim is the other way round: " if wrong else ""
                yield Finding(
                    "no interval",
                    where,
                    f"{turned}the paired difference of {p.metric} is {mean:+.3g}, its 95 % interval {span}.",
                    "Say that no difference is shown, or add seeds.",
                )


def _text(value) -> str:
    return " / ".join(map(str, value)) if isinstance(value, tuple) else str(value)


CHECKS = (_undeclared, _own_samples, _overlap, _padding, _across_tokenizers, _leak, _seeds, _intervals)


# --- our own results

SOUND = {"text": "held-out", "padding_counted": False, "overlap": 0, "leak": 0.0}
SHIPPED: dict[tuple[str, str], Protocol] = {  # (notebook, table) -> what holds for it, from its code and tests
    ("02_finetune", "runs"): Protocol("held_out_loss", within=("task",), tokenizer="column:base_model", **SOUND),
    ("03_evaluate", "before_after"): Protocol(
        within=("task",), tokenizer="base model's", exempt={"method": "none"}, **SOUND
    ),
    ("03_evaluate", "forgetting"): Protocol(
        "value",
        within=("task", "measure"),
        tokenizer="base model's",
        exempt={"method": "none"},
        only={"measure": ("wikitext2_token_bits_per_byte", "lambada_word_accuracy", "blimp_accuracy")},
        **SOUND,
    ),
    ("04_token_encoding", "encodings"): Protocol(
        compare=("encoding", "vocab_size"), within=("corpus", "budget"), tokenizer="column:encoding", **SOUND
    ),
    ("05_position_encoding", "positions"): Protocol(
        compare=("position",), within=("protocol", "eval_length"), tokenizer="bpe 1024", **SOUND
    ),
    ("06_attention", "quality"): Protocol(compare=("attention",), within=("position",), tokenizer="bpe 1024", **SOUND),
    ("09_innovation", "frontier"): Protocol(
        compare=("method", "setting"), tokenizer="base model's", exempt={"method": "none"}, **SOUND
    ),
}


def shipped_results() -> dict[str, dict]:
    """The results files of the checkout, by notebook."""
    folder = profile.ROOT / "data" / "results"
    return {p.stem: results.load(p.stem, folder) for p in sorted(folder.glob("*.json"))}


def audit_results(files: Mapping[str, Mapping]) -> pd.DataFrame:
    """`audit` of every table of SHIPPED that has rows in `files` (notebook -> what lib.results.load gave): notebook,
    table and the columns of Finding; a table without findings is one row whose trap is "none".
    """
    rows = []
    for (notebook, table), protocol in SHIPPED.items():
        measured = files.get(notebook, {}).get("tables", {}).get(table)
        if not measured:  # not run, or its benchmark was not within reach
            continue
        found = audit(measured, protocol)
        where = {"notebook": notebook, "table": table}
        rows += [where | vars(f) for f in found] or [
            where | {"trap": "none", "where": "", "problem": "", "way_out": ""}
        ]
    return pd.DataFrame(rows, columns=["notebook", "table", "trap", "where", "problem", "way_out"])
