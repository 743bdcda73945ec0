"""The figures of notebook 09 that lib.plots has no form for: the gain-forgetting front and rankings that change."""

import matplotlib.pyplot as plt
import pandas as pd

from lib.explore.traps import means
from lib.plots import COLORS, GREY, INK, MARKERS, style

SHAPES = (*MARKERS, "X", "*")  # one per method: more than lib.style has

style()


def front(summary: pd.DataFrame, general_label: str, task_label="task: bits per byte"):
    """lib.explore.frontier.summary as points with their 95 % t intervals: task on x, general text on y, both better when
    lower. Filled: on the front, which the line joins; the dashed line is the way from before to full fine-tuning
    through the interpolations.
    """
    fig, ax = plt.subplots(figsize=(7.6, 5.2))
    on_path = summary["method"].isin(["none", "interpolation"]) | (
        (summary["method"] == "full") & (summary["setting"] == "lr 1e-4")
    )
    path = summary[on_path].sort_values("task")
    ax.plot(path["task"], path["general"], color=GREY, linestyle="--", linewidth=1, zorder=1)
    best = summary[summary["front"]].sort_values("task")
    ax.plot(best["task"], best["general"], color=INK, linestyle="-", linewidth=1, zorder=1)
    methods = list(dict.fromkeys(summary["method"]))
    for row in summary.itertuples():
        i = methods.index(row.method)
        color = COLORS[i % 6]
        ax.plot([row.task_low, row.task_high], [row.general] * 2, color=color, linewidth=1, linestyle="-")
        ax.plot([row.task] * 2, [row.general_low, row.general_high], color=color, linewidth=1, linestyle="-")
        ax.plot(
            row.task,
            row.general,
            SHAPES[i % len(SHAPES)],
            color=color,
            markersize=7,
            markerfacecolor=color if row.front else "white",
            zorder=3,
        )
    _label_points(ax, summary)
    ax.set(xlabel=f"{task_label} (lower: more gained)", ylabel=f"{general_label} (lower: less forgotten)")
    return fig


def _label_points(ax, summary: pd.DataFrame) -> None:
    """ "method, setting" beside each point; labels that would overlap are moved down, with a thin line."""
    ax.margins(0.12)
    ax.figure.draw_without_rendering()
    to_points = 72 / ax.figure.dpi
    taken: list[tuple[float, float]] = []
    for row in summary.sort_values("general", ascending=False).itertuples():
        x, y = ax.transData.transform((row.task, row.general)) * to_points
        wanted = y
        while any(abs(y - b) < 10 and abs(x - a) < 110 for a, b in taken):
            y -= 2
        taken.append((x, y))
        text = "before" if row.method == "none" else f"{row.method}, {row.setting}"
        arrow = {"arrowstyle": "-", "color": GREY, "linewidth": 0.5} if wanted - y > 6 else None
        ax.annotate(
            text,
            (row.task, row.general),
            (9, y - wanted),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            arrowprops=arrow,
            annotation_clip=False,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.8},
        )


def rankings(values: pd.DataFrame, columns: int = 2):
    """lib.explore.traps' values: a panel per trap, the models' rank by the sound measure at the left and with the trap at
    the right, 1 the best; for "one seed" the seed that differs most. Models whose rank changes are dark.
    """
    traps = list(dict.fromkeys(values["trap"]))
    rows = -(-len(traps) // columns)
    tallest = values.groupby("trap")["model"].nunique().max()
    fig, axes = plt.subplots(rows, columns, squeeze=False, figsize=(4.9 * columns, rows * (0.8 + 0.24 * tallest)))
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, trap in zip(axes.flat, traps, strict=False):
        ranks = means(values[values["trap"] == trap]).rank(method="first")
        for model, (sound, trapped) in ranks.iterrows():
            moved = sound != trapped
            look = {"color": INK if moved else GREY}
            ax.plot([0, 1], [sound, trapped], "o-", markersize=3.5, linewidth=1.6 if moved else 0.8, **look)
            ax.annotate(
                f"{model}  {sound:.0f}",
                (0, sound),
                (-5, 0),
                textcoords="offset points",
                ha="right",
                va="center",
                fontsize=7.5,
                **look,
            )
            ax.annotate(
                f"{trapped:.0f}", (1, trapped), (5, 0), textcoords="offset points", va="center", fontsize=7.5, **look
            )
        ax.set(xlim=(-1.6, 1.2), ylim=(len(ranks) + 0.6, -0.1))
        ax.set_title(trap, fontsize=9)
        ax.annotate("sound", (0, 0.3), ha="center", fontsize=7.5, color=GREY)
        ax.annotate("with the trap", (1, 0.3), ha="center", fontsize=7.5, color=GREY)
    return fig
