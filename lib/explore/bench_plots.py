"""The figure of notebook 11."""

import matplotlib.pyplot as plt
import pandas as pd

from lib.plots import COLORS, INK


def speeds(tables: dict[str, pd.DataFrame], columns: dict[str, str]):
    """One panel per table in `columns` (table -> its column of tokens per second): a bar per system and setting
    at the median over runs, a dot per run; this project's bar stands first, in colour.
    """
    kinds = [k for k in columns if k in tables]
    fig, axes = plt.subplots(1, len(kinds), squeeze=False, figsize=(3.1 * len(kinds) + 1, 2.6))
    for ax, kind in zip(axes[0], kinds, strict=True):
        groups = tables[kind].groupby(["system", "setting"], sort=False)[columns[kind]]
        names = []
        for y, ((system, setting), runs) in enumerate(groups):
            names.append(system if setting == "default" else f"{system}, {setting}")
            face = COLORS[0] if system == "ours" else "#BBBBBB"
            ax.barh(y, runs.median(), color=face, height=0.62)
            ax.plot(runs, [y] * len(runs), ".", color=INK, markersize=4)
            ax.annotate(
                f"{runs.median():,.0f}", (runs.max(), y), (5, 0), textcoords="offset points", va="center", fontsize=7.5
            )
        ax.set_yticks(range(len(names)), names)
        ax.set_xlim(0, tables[kind][columns[kind]].max() * 1.25)
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
        ax.set_title(kind)
        ax.set_xlabel("tokens per second")
    return fig
