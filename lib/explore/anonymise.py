"""Personal data in text: found by patterns and checksums, replaced by their category, and measured.

No model: what a program can check (an address's form, a checksum, a key's prefix, a word such as
"passport" before a number). It finds what these rules describe and nothing else: a name that is not in
the list, a nickname or a street stay. `evaluate` says how much it finds of a labelled set
(data/anonymiser), and how much of what it finds is labelled.
"""

import json
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from scipy import stats

from lib.explore.detectors import CATEGORIES, names_in
from lib.profile import DATA

LABELLED = DATA / "anonymiser"
HALVES = ("tune", "test")
MARK = re.compile(r"\{\{(\w+)\|(.*?)\}\}", re.DOTALL)  # how labelled.jsonl marks an item
# full-width forms, one character for one, so that positions stay those of the text
HALF_WIDTH = str.maketrans("０１２３４５６７８９＠（）＋－．：＝", "0123456789@()+-.:=")


@dataclass(frozen=True)
class Found:
    category: str
    start: int
    end: int


def find(text: str, names: Sequence[str] = ()) -> list[Found]:
    """What `text` holds of each category, and of `names`, in order and without overlap."""
    plain = text.translate(HALF_WIDTH)
    taken: list[Found] = []  # by start; since none overlap, only the neighbours can be in the way
    for category, detect in (*CATEGORIES.items(), ("name", lambda t: names_in(t, names))):
        for start, end in detect(plain):
            at = bisect_left(taken, start, key=lambda f: f.start)
            before, after = taken[max(0, at - 1) : at], taken[at : at + 1]
            if all(f.end <= start for f in before) and all(end <= f.start for f in after):
                taken.insert(at, Found(category, start, end))
    return taken


def anonymise(text: str, names: Sequence[str] = ()) -> tuple[str, dict[str, int]]:
    """`text` with each item replaced by its category, such as [EMAIL], and how many of each."""
    pieces, counts, at = [], {}, 0
    for item in find(text, names):
        pieces += [text[at : item.start], f"[{item.category.upper()}]"]
        counts[item.category] = counts.get(item.category, 0) + 1
        at = item.end
    return "".join([*pieces, text[at:]]), counts


def read_names(path: Path) -> list[str]:
    """One name a line, UTF-8; blank lines and lines that begin with # are left out."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason}); save the list as UTF-8.") from None
    return [n for line in lines if (n := line.strip()) and not n.startswith("#")]


# --- the labelled set


@dataclass(frozen=True)
class Labelled:
    id: str
    half: str  # tune: looked at while the rules were written; test: looked at once, at the end
    lang: str
    text: str
    spans: tuple[Found, ...]


def labelled(half: str | None = None, path: Path | None = None) -> list[Labelled]:
    """The rows of data/anonymiser/labelled.jsonl, marks taken out. Raises ValueError for a bad row."""
    path = path or LABELLED / "labelled.jsonl"
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        row = json.loads(line)
        text, spans, at = "", [], 0
        for mark in MARK.finditer(row["text"]):
            if mark[1] not in (*CATEGORIES, "name"):
                raise ValueError(f"{path}, line {number}: {mark[1]!r} is no category; mend the mark.")
            text += row["text"][at : mark.start()]
            spans.append(Found(mark[1], len(text), len(text) + len(mark[2])))
            text, at = text + mark[2], mark.end()
        text += row["text"][at:]
        if row["half"] not in HALVES:
            raise ValueError(f"{path}, line {number}: half is {row['half']!r}, not tune or test.")
        rows.append(Labelled(row["id"], row["half"], row["lang"], text, tuple(spans)))
    return [r for r in rows if half in (None, r.half)]


def evaluate(rows: Sequence[Labelled], names: Sequence[str]) -> pd.DataFrame:
    """Per category and for `all`: found, labelled, correct, precision = correct / found, recall =
    correct / labelled, each with a 95 % Clopper-Pearson interval.

    Correct: the same category and exactly the same characters; a span too wide or too short counts
    against both. Nothing found or nothing labelled makes the ratio nan.
    """
    counts = {c: [0, 0, 0] for c in (*CATEGORIES, "name")}
    for row in rows:
        found = set(find(row.text, names))
        for items, at in ((found, 0), (set(row.spans), 1), (found & set(row.spans), 2)):
            for item in items:
                counts[item.category][at] += 1
    counts["all"] = [sum(column) for column in zip(*counts.values(), strict=True)]
    return pd.DataFrame([_ratios(category, *c) for category, c in counts.items()])


def _ratios(category: str, found: int, labelled: int, correct: int) -> dict:
    row = {"category": category, "found": found, "labelled": labelled, "correct": correct}
    for name, total in (("precision", found), ("recall", labelled)):
        row[name] = correct / total if total else float("nan")
        ends = stats.binomtest(correct, total).proportion_ci() if total else (float("nan"),) * 2
        row[f"{name}_low"], row[f"{name}_high"] = map(float, ends)
    return row


def mistakes(rows: Sequence[Labelled], names: Sequence[str]) -> pd.DataFrame:
    """What was missed and what was found wrongly: id, lang, kind, category, item, text."""
    out = []
    for row in rows:
        found, wanted = set(find(row.text, names)), set(row.spans)
        for kind, items in (("missed", wanted - found), ("wrong", found - wanted)):
            for f in sorted(items, key=lambda f: f.start):
                out.append(
                    {
                        "id": row.id,
                        "lang": row.lang,
                        "kind": kind,
                        "category": f.category,
                        "item": row.text[f.start : f.end],
                        "text": row.text,
                    }
                )
    return pd.DataFrame(out, columns=["id", "lang", "kind", "category", "item", "text"])
