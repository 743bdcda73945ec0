"""The figure of notebook 04 that lib.plots has no form for: bits per byte against vocabulary size."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd

from lib.metrics import mean_interval
from lib.plots import COLORS, LINES, MARKERS, label_lines
from lib.plots import strips as strips

BEFORE, AFTER = (0.985, 1.015)  # of x: intervals of two lines at one vocabulary size stand side by side


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
