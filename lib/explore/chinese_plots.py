"""The figure of notebook 07's form checks, in the style of lib.plots and from the table of lib.explore.chinese_runs."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd

from lib.metrics import mean_interval
from lib.plots import COLORS, INK, MARKERS


def form_panels(df: pd.DataFrame, measures: Mapping[str, str], sources: Sequence[str], columns=3):
    """Columns source, seed, measure, value, all shares; `measures` are the panels' titles, `sources` the
    rows from the top. Every seed is a small dot; the mean has its number and its 95 % t interval."""
    rows = -(-len(measures) // columns)
    fig, axes = plt.subplots(
        rows,
        columns,
        sharex=True,
        sharey=True,
        squeeze=False,
        figsize=(2.5 * columns + 1, rows * (0.7 + 0.34 * len(sources))),
    )
    for ax, (measure, title) in zip(axes.flat, measures.items(), strict=False):
        for y, source in enumerate(sources):
            part = df[(df["measure"] == measure) & (df["source"] == source)]["value"]
            if part.empty:  # chance has no exact form
                continue
            part = part.dropna()
            if part.empty:  # tones of texts that are no poems
                ax.annotate("no poem to measure", (0, y), va="center", fontsize=7.5, color=INK)
                continue
            mean, low, high = mean_interval(part)
            color, marker = COLORS[y % 6], MARKERS[y % 6]
            ax.plot(
                [max(low, 0), min(high, 1)],
                [y, y],
                color=color,
                linewidth=4,
                alpha=0.45,
                linestyle="-",
                solid_capstyle="butt",
            )
            ax.plot(part, [y] * len(part), "o", color=INK, markersize=2.5, zorder=3)
            ax.plot(mean, y, marker, color=color, markersize=7)
            ax.annotate(f"{100 * mean:.1f} %", (mean, y), (0, 6), textcoords="offset points", ha="center", fontsize=7.5)
        ax.set_title(title, fontsize=9)
        ax.set_yticks(range(len(sources)), sources)
        ax.set_xlim(-0.1, 1.12)
        ax.grid(axis="y", visible=False)
    axes[0, 0].set_ylim(len(sources) - 0.5, -0.8)
    for ax in axes.flat[len(measures) :]:
        ax.set_visible(False)
    for ax in axes[-1]:
        ax.set_xlabel("share")
        ax.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
    return fig
