"""The figures of the notebooks, in one style (lib.style): readable in grey, labelled where the eye is.

Every function takes plain tables, so a figure can be drawn again from data/results alone, and returns
the figure.
"""

import math
import re
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from lib.generate import OTHERS, token_text
from lib.metrics import mean_interval
from lib.style import COLORS, GREY, INK, LINES, MARKERS, label_lines, style
from lib.style import caption as caption  # notebooks take these from lib.plots
from lib.style import save_figure as save_figure

BYTES = re.compile(r"<[0-9A-F]{2}( [0-9A-F]{2})*>")  # how lib.generate.token_text writes a fragment

style()


def _visible(token: str) -> str:
    """A token with its white space to see; `$` would start mathematics."""
    if token == OTHERS or BYTES.fullmatch(token):
        return token
    return token.replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥").replace("$", r"\$")


def histogram(lengths: Mapping[str, Sequence[float]], xlabel="tokens per document", bins=40):
    """One panel per name, below each other on one x axis; a line marks the median."""
    fig, axes = plt.subplots(len(lengths), 1, sharex=True, squeeze=False, figsize=(6.4, 0.7 + 1.05 * len(lengths)))
    edges = np.histogram_bin_edges(np.concatenate([np.asarray(v) for v in lengths.values()]), bins)
    for ax, (name, values), color in zip(axes[:, 0], lengths.items(), COLORS, strict=False):
        ax.hist(values, edges, color=color, edgecolor="white", linewidth=0.4)
        middle = float(np.median(values))
        ax.axvline(middle, color=INK, linewidth=1, linestyle="--")
        ax.annotate(
            f"median {middle:g}",
            (middle, 1),
            (4, -2),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            va="top",
        )
        ax.set_title(f"{name}  (n = {len(values):,})", fontsize=9)
        ax.set_ylabel("documents")
    axes[-1, 0].set_xlabel(xlabel)
    return fig


def loss_curves(df: pd.DataFrame, measure="bits_per_byte", x="tokens", ylabel="held-out bits per byte"):
    """Columns method, seed, `x`, `measure`: each seed thin, the mean over seeds bold and labelled."""
    fig, ax = plt.subplots()
    df = df.dropna(subset=[measure])
    for i, (method, runs) in enumerate(df.groupby("method", sort=False)):
        look = {"color": COLORS[i % 6], "linestyle": LINES[i % 6]}
        for _, run in runs.groupby("seed"):
            ax.plot(run[x], run[measure], linewidth=0.7, alpha=0.5, **look)
        # by evaluation and not by `x`: the seeds' packed rows hold slightly different numbers of tokens
        mean = runs.groupby(runs.groupby("seed").cumcount())[[x, measure]].mean()
        ax.plot(mean[x], mean[measure], label=method, marker=MARKERS[i % 6], markersize=4, **look)
    ax.xaxis.set_major_formatter(lambda v, _: f"{v:,.0f}")
    ax.set(xlabel=x, ylabel=ylabel)
    label_lines(ax)
    return fig


def before_after(df: pd.DataFrame, measures: Mapping[str, str]):
    """Columns method, stage ("before", "after"), seed and the keys of `measures`, whose values are axis
    titles: one panel each, open dot before, filled dot after with the 95 % t interval over seeds. A
    "before" row whose method has no "after" (such as "none") is the start of every method.
    """
    after, before = df[df["stage"] == "after"], df[df["stage"] == "before"]
    methods = list(dict.fromkeys(after["method"]))
    fig, axes = plt.subplots(
        1, len(measures), sharey=True, squeeze=False, figsize=(3.2 * len(measures) + 0.8, 0.9 + 0.5 * len(methods))
    )
    for ax, (key, title) in zip(axes[0], measures.items(), strict=True):
        digits = max(0, 2 - math.floor(math.log10(df[key].abs().max() or 1)))  # three figures, aligned
        labels = []
        for y, method in enumerate(methods):
            own = before[before["method"] == method]
            old = (own if len(own) else before[~before["method"].isin(methods)])[key].mean()
            new, low, high = mean_interval(after.loc[after["method"] == method, key].dropna())
            color = COLORS[y % 6]
            ax.annotate("", (new, y), (old, y), arrowprops={"arrowstyle": "->", "color": GREY})
            ax.plot([low, high], [y, y], color=color, linewidth=4, alpha=0.45, linestyle="-", solid_capstyle="butt")
            ax.plot(old, y, "o", markerfacecolor="white", markeredgecolor=INK, markersize=7)
            ax.plot(new, y, MARKERS[y % 6], color=color, markersize=7)
            pair = []
            for value, name in ((old, "before"), (new, "after")):
                text = f"{value:.{digits}f}" if y else f"{name}\n{value:.{digits}f}"
                pair.append(ax.annotate(text, (value, y), (0, 7), textcoords="offset points", ha="center"))
            labels.append(sorted(pair, key=lambda label: label.xy[0]))
        ax.set_title(title)
        ax.margins(x=0.15)
        for left, right in labels:  # a label is about a seventh of a panel wide
            if right.xy[0] - left.xy[0] < 0.16 * np.ptp(ax.get_xlim()):
                left.set_ha("right")
                right.set_ha("left")
        ax.set_ylim(len(methods) - 0.5, -0.9)
        ax.grid(axis="y", visible=False)
        ax.set_yticks(range(len(methods)), methods)
    return fig


def heatmap(matrix, xticks: Sequence[str], yticks: Sequence[str], title="", label="attention weight"):
    """`matrix` (rows, columns) with a name per row and column, such as tokens; from 0 to its maximum."""
    matrix = np.asarray(matrix, dtype=float)
    size = (1.6 + 0.3 * matrix.shape[1], 0.9 + 0.3 * matrix.shape[0])
    fig, ax = plt.subplots(figsize=size)
    image = ax.imshow(matrix, cmap="Blues", vmin=0)
    ax.set_xticks(range(len(xticks)), [_visible(t) for t in xticks], rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(yticks)), [_visible(t) for t in yticks])
    ax.tick_params(length=0)
    ax.set_title(title)
    ax.grid(False)
    fig.colorbar(image, label=label, shrink=0.8, aspect=25).outline.set_visible(False)
    return fig


def similarity(matrix, title="", xlabel="position", label="cosine similarity"):
    """`matrix` (n, n) of cosine similarities, drawn from -1 to 1."""
    fig, ax = plt.subplots(figsize=(4.6, 3.8))
    image = ax.imshow(np.asarray(matrix), cmap="cividis", vmin=-1, vmax=1, interpolation="nearest")
    ax.set(title=title, xlabel=xlabel, ylabel=xlabel)
    ax.grid(False)
    fig.colorbar(image, label=label, shrink=0.8, aspect=25).outline.set_visible(False)
    return fig


def bars(df: pd.DataFrame, label="token", value="probability", panel: str | None = "setting", columns=3):
    """Horizontal bars with their numbers, one panel per value of the column `panel` (None: one in all).

    The panels share their labels and scale: the table of lib.generate.next_token_distribution fits.
    """
    groups = [("", df)] if panel is None else list(df.groupby(panel, sort=False))
    rows, columns = -(-len(groups) // columns), min(columns, len(groups))
    names = list(dict.fromkeys(df[label]))
    fig, axes = plt.subplots(
        rows,
        columns,
        sharex=True,
        sharey=True,
        squeeze=False,
        figsize=(1.2 + 2.3 * columns, rows * (0.5 + 0.2 * len(names))),
    )
    for ax, (title, group) in zip(axes.flat, groups, strict=False):
        values = group.set_index(label)[value].reindex(names).to_numpy()
        faces = ["#BBBBBB" if n == OTHERS else COLORS[0] for n in names]
        ax.barh(range(len(names)), values, color=faces, height=0.72)
        for y, v in enumerate(values):
            text = "0" if v < 5e-7 else f"{v:.3f}" if v >= 0.0005 else "<0.001"
            ax.annotate(text, (v, y), (3, 0), textcoords="offset points", va="center", fontsize=7.5)
        ax.set_title(title, fontsize=9)
        ax.set_yticks(range(len(names)), [_visible(str(n)) for n in names])
        ax.grid(axis="y", visible=False)
    axes[0, 0].invert_yaxis()
    axes[0, 0].set_xlim(0, df[value].max() * 1.22)
    for ax in axes.flat[len(groups) :]:
        ax.set_visible(False)
    for ax in axes[-1]:
        ax.set_xlabel(value)
    return fig


def token_strip(texts: Sequence[str], tokenizer, width: float = 7.2):
    """Each text as a row of boxes, one per token, wrapped at `width` inches; the bytes of a character
    that is split over tokens stand as <E6 98>, outlined. The count stands at the left.
    """
    fig, ax = plt.subplots(figsize=(width, 1), layout="none")
    ax.set_position((0, 0, 1, 1))
    ax.set_axis_off()
    measure = fig.canvas.get_renderer() if hasattr(fig.canvas, "get_renderer") else None
    limit, height, y = width * 72, 17.0, 0.0
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        x = 70.0
        ax.text(0, y, f"{len(ids)} tokens", va="center", fontsize=8, color=GREY)
        for n, i in enumerate(ids):
            shown = token_text(tokenizer, i)
            broken = BYTES.fullmatch(shown) is not None
            label = ax.text(0, y, _visible(shown), va="center", fontsize=7 if broken else 9)
            advance = label.get_window_extent(measure).width * 72 / fig.dpi + 5
            if x + advance > limit:
                x, y = 70.0, y - height
            label.set_position((x + 2.5, y))
            face = ("#D6E3F2", "#F6E7C1")[n % 2]
            ax.add_patch(
                plt.Rectangle(
                    (x, y - 7),
                    advance - 0.8,
                    14,
                    facecolor=face,
                    edgecolor=GREY if broken else "white",
                    linewidth=0.5,
                    zorder=0,
                )
            )
            x += advance
        y -= height * 1.4
    low = y + height * 1.4 - 10
    ax.set(xlim=(0, limit), ylim=(low, 10))
    fig.set_size_inches(width, (10 - low) / 72)
    return fig


def lines(
    df: pd.DataFrame,
    x: str,
    y: str,
    series: str,
    panel: str | None = None,
    logx=True,
    logy=False,
    ylabel: str | None = None,
    xlabel: str | None = None,
    top: float | None = None,
    sharey=True,
):
    """One line per value of `series`, the mean over `seed` where there is one, with its range as a band;
    one panel per value of `panel`. `top` cuts the y axis: what lies above is written at the edge.
    """
    panels = [("", df)] if panel is None else list(df.groupby(panel, sort=False))
    fig, axes = plt.subplots(1, len(panels), sharey=sharey, squeeze=False, figsize=(max(6.4, 3.6 * len(panels)), 3.8))
    for ax, (title, part) in zip(axes[0], panels, strict=True):
        ticks = sorted(part[x].unique())
        for i, name in enumerate(dict.fromkeys((df if sharey else part)[series])):
            groups = part[part[series] == name].groupby(x)[y]
            mean = groups.mean()
            if mean.empty:
                continue
            look = {"color": COLORS[i % 6], "linestyle": LINES[(i + i // 6) % 6]}
            if top is not None and (above := mean[mean > top]).size:
                # the line leaves the panel upwards; its largest value is told instead of drawn
                ax.annotate(
                    f"{name}: up to {above.max():.1f}",
                    (above.index[0], top),
                    (0, -3 - 10 * i),
                    textcoords="offset points",
                    va="top",
                    ha="right",
                    color=look["color"],
                    fontsize=7.5,
                )
                mean = mean.clip(upper=top)
            marker = MARKERS[i % 6] if len(mean) <= 20 else ""
            ax.plot(mean.index, mean, label=str(name), marker=marker, markersize=3.5, **look)
            ax.fill_between(
                mean.index,
                groups.min().clip(upper=top),
                groups.max().clip(upper=top),
                color=look["color"],
                alpha=0.15,
                linewidth=0,
            )
        if logx:
            ax.set_xscale("log", base=2)
            ax.set_xticks(ticks, [f"{t:,.0f}" for t in ticks])
            ax.minorticks_off()
        if logy:
            ax.set_yscale("log")
            if ax.get_ylim()[1] < 10 * ax.get_ylim()[0]:  # else its ticks would be such as 9 x 10^1
                ax.yaxis.set_major_formatter("{x:g}")
                ax.yaxis.set_minor_formatter("{x:g}")
        ax.set_title(str(title))
        ax.set_xlabel(xlabel or x)
    for ax in axes[0]:  # behind the last panel's lines, which share the axis
        if top is not None:
            ax.set_ylim(top=top)
        label_lines(ax)
    axes[0, 0].set_ylabel(ylabel or y)
    return fig


def matrices(panels: Mapping[str, np.ndarray], columns: int = 4, label="weight"):
    """Small square matrices side by side, red below 0 and blue above. Each has its own colour scale, which ends where
    3 % of its entries lie beyond: a few large ones would leave the rest white.
    """
    rows = -(-len(panels) // columns)
    fig, axes = plt.subplots(rows, columns, squeeze=False, figsize=(1.75 * columns, 1.95 * rows))
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, (name, matrix) in zip(axes.flat, panels.items(), strict=False):
        limit = float(np.quantile(np.abs(matrix[matrix != 0]), 0.97)) if matrix.any() else 1.0
        ax.imshow(matrix, cmap="RdBu", vmin=-limit, vmax=limit, interpolation="nearest")
        ax.set_title(name, fontsize=8.5)
        ax.plot([-0.5, len(matrix) - 0.5], [-0.5, len(matrix) - 0.5], color=GREY, linewidth=0.5, linestyle="-")
    return fig
