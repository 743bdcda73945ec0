"""Forms of what report.md is filled with: tables, lists, numbers with their intervals, quotations."""

import math
import textwrap
from collections.abc import Sequence

import pandas as pd

from lib.metrics import mean_interval


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, widths: Sequence[int] = ()) -> str:
    """A Markdown table, the first `left` columns left-aligned. Of a wide one pandoc takes the columns' widths from the
    rule: by the longest cell and room beside it, or `widths`."""
    cells = [[str(c).replace("|", r"\|").replace("\n", " ") for c in row] for row in rows]
    longest = [max(len(row[i]) for row in [list(header), *cells]) for i in range(len(header))]
    widths = widths or [max(3, n) + 2 for n in longest]
    rule = [(":" + "-" * (w - 1) if i < left else "-" * (w - 1) + ":") for i, w in enumerate(widths)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(header), rule, *cells])


def bullets(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {s}" for s in sentences)


def number(x: float, digits: int = 3) -> str:
    """`-` for what was not measured."""
    return "-" if x is None or pd.isna(x) else f"{x:,.{digits}f}"


def interval(values: Sequence[float], digits: int = 3, sign: bool = False) -> str:
    """Mean and 95 % t interval over seeds: "1.042 [1.038, 1.045]"; the mean alone where one seed has none."""
    return span(*mean_interval(pd.Series(values, dtype=float).dropna()), digits, sign)


def span(mean: float, low: float, high: float, digits: int = 3, sign: bool = False) -> str:
    """Like "1.042 [1.038, 1.045]"; the mean alone where the bounds are nan, `-` where it is nan itself."""
    form = f"{'+' if sign else ''}.{digits}f"
    if math.isnan(mean):
        return "-"
    return f"{mean:{form}}" if math.isnan(low) else f"{mean:{form}} [{low:{form}}, {high:{form}}]"


def shown(values: Sequence[float]) -> int:
    """-1 or 1 where the 95 % interval of these differences lies on one side of 0, else 0; one seed shows nothing."""
    _, low, high = mean_interval(pd.Series(values, dtype=float).dropna())
    return 0 if math.isnan(low) or low * high <= 0 else int(math.copysign(1, low))


def by_seed(df: pd.DataFrame, columns: str) -> pd.DataFrame:
    """Bits per byte with a row per seed and a column per value of `columns`, in the table's order."""
    return df.pivot(index="seed", columns=columns, values="bits_per_byte")[df[columns].unique()]


def seeds(n: int) -> str:
    return f"{n} seed{'s' * (n > 1)}"


def listed(names: Sequence[str]) -> str:
    """ "a, b and c"; "none" for nothing."""
    names = list(names)
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else "none"


def tiny(x: float) -> str:
    """A difference that should be rounding: "8e-06", and "0" for exactly none."""
    return f"{x:.0e}" if x else "0"


def quoted(text: str, lines: int = 8) -> str:
    """The leading lines of a text in a fence, wrapped at 80 columns and without what would end the fence."""
    text = text.strip("\n").replace("```", "'''").replace("<!-", "<! -").replace("-->", "-- >")
    wrapped = [part for line in text.splitlines() for part in textwrap.wrap(line, 80) or [""]]
    return "\n".join(["```", *wrapped[:lines], *["[...]"] * (len(wrapped) > lines), "```"])
