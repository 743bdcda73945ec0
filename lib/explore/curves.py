"""The figures of notebook 04: texts cut into tokens, bits per byte by encoding and against vocabulary size.

In the style of lib.plots and from plain tables, as there.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd

from lib.explore.encodings import UNK
from lib.metrics import mean_interval
from lib.plots import BYTES, _visible
from lib.style import COLORS, GREY, INK, LINES, MARKERS, label_lines

LABEL, HEIGHT = 84.0, 16.0  # points: the column of names, and from one row of boxes to the next
BEFORE, AFTER = (0.985, 1.015)  # of x: intervals of two lines at one vocabulary size stand side by side


def strips(texts: Mapping[str, Mapping[str, Sequence[str]]], width: float = 7.2):
    """{title: {encoding: tokens as lib.explore.encodings.Encoding.tokens gives them}}: under each title a row of boxes per
    encoding, one box per token, wrapped at `width` inches, the count behind the name. Parts of a character
    stand as <E6 98> in an outlined box, UNK in a dark one.
    """
    fig, ax = plt.subplots(figsize=(width, 1), layout="none")
    ax.set_position((0, 0, 1, 1))
    ax.set_axis_off()
    measure = fig.canvas.get_renderer() if hasattr(fig.canvas, "get_renderer") else None
    y = 0.0
    for title, rows in texts.items():
        ax.text(0, y, title, va="center", fontsize=9, parse_math=False)
        for name, tokens in rows.items():
            y -= HEIGHT * 1.15
            ax.text(0, y, name, va="center", fontsize=8)
            ax.text(LABEL - 6, y, f"{len(tokens)}", va="center", ha="right", fontsize=8, color=GREY)
            y = _boxes(ax, tokens, y, width * 72, measure)
        y -= HEIGHT * 1.6
    low = y + HEIGHT * 0.9
    ax.set(xlim=(0, width * 72), ylim=(low, 10))
    fig.set_size_inches(width, (10 - low) / 72)
    return fig


def _boxes(ax: plt.Axes, tokens: Sequence[str], y: float, right: float, measure) -> float:
    """Draw one row from LABEL to `right` points; returns the y of its last line."""
    x = LABEL
    for n, token in enumerate(tokens):
        broken, unknown = BYTES.fullmatch(token) is not None, token == UNK
        text = ax.text(
            0,
            y,
            _visible(token),
            va="center",
            fontsize=6 if broken or unknown else 8.5,
            color="white" if unknown else INK,
        )
        advance = text.get_window_extent(measure).width * 72 / ax.figure.dpi + 4
        if x + advance > right:
            x, y = LABEL, y - HEIGHT
        text.set_position((x + 1.6, y))
        face = INK if unknown else ("#D6E3F2", "#F6E7C1")[n % 2]
        ax.add_patch(
            plt.Rectangle(
                (x, y - 6.5),
                advance - 0.8,
                13,
                facecolor=face,
                edgecolor=GREY if broken else "white",
                linewidth=0.5,
                zorder=0,
            )
        )
        x += advance
    return y


def by_encoding(df: pd.DataFrame, titles: Mapping[str, str]):
    """Columns corpus, encoding, label, seed, bits_per_byte; `titles` are the corpora's. One panel per corpus, one row
    per label: every seed as a small dot, the mean with its 95 % t interval and its number.
    """
    families = {name: i for i, name in enumerate(dict.fromkeys(df["encoding"]))}
    rows = max(df[df["corpus"] == c]["label"].nunique() for c in titles)
    fig, axes = plt.subplots(1, len(titles), squeeze=False, figsize=(3.7 * len(titles), 0.8 + 0.34 * rows))
    for ax, (corpus, title) in zip(axes[0], titles.items(), strict=True):
        groups = df[df["corpus"] == corpus].groupby("label", sort=False)
        for y, (_, runs) in enumerate(groups):
            i = families[runs["encoding"].iloc[0]] % 6
            mean, low, high = mean_interval(runs["bits_per_byte"])
            ax.plot([low, high], [y, y], color=COLORS[i], linewidth=4, alpha=0.45, linestyle="-", solid_capstyle="butt")
            ax.plot(runs["bits_per_byte"], [y] * len(runs), "o", color=INK, markersize=2.5, zorder=3)
            ax.plot(mean, y, MARKERS[i], color=COLORS[i], markersize=7)
            ax.annotate(f"{mean:.3f}", (mean, y), (0, 6), textcoords="offset points", ha="center", fontsize=7.5)
        ax.set_yticks(range(len(groups)), list(groups.groups))
        ax.set_ylim(rows - 0.5, -0.8)
        ax.grid(axis="y", visible=False)
        ax.margins(x=0.12)
        ax.set(title=title, xlabel="bits per byte (lower is better)")
    return fig


def by_vocabulary(df: pd.DataFrame, names: Mapping[str, str]):
    """Columns vocab_size, budget, seed, bits_per_byte; `names` are the budgets'. One line per budget through the
    means, with 95 % t intervals and every seed as a small dot; the smallest vocabulary is that of bytes.
    """
    fig, ax = plt.subplots()
    for i, (budget, name) in enumerate(names.items()):
        groups = df[df["budget"] == budget].groupby("vocab_size")["bits_per_byte"]
        spots = [v * (BEFORE, AFTER)[i % 2] for v in groups.groups]
        means, low, high = zip(*(mean_interval(values) for _, values in groups), strict=True)
        ax.vlines(spots, low, high, color=COLORS[i], linewidth=4, alpha=0.35)
        for x, (_, values) in zip(spots, groups, strict=True):
            ax.plot([x] * len(values), values, "o", color=COLORS[i], markersize=2.5)
        ax.plot(spots, means, label=name, color=COLORS[i], linestyle=LINES[i], marker=MARKERS[i], markersize=5)
    ticks = sorted(df["vocab_size"].unique())
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks, [f"{v:,}" if n else f"bytes\n{v:,}" for n, v in enumerate(ticks)])
    ax.minorticks_off()
    ax.set(xlabel="vocabulary size", ylabel="held-out bits per byte")
    label_lines(ax)
    return fig
