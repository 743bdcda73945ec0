"""The figures of the notebooks, in one style: readable in grey, labelled where the eye is instead of in a legend.

Every figure is drawn from plain tables, so that it can be drawn again from data/results alone, and is as wide as the
report's text: letters are printed as large as they are set, at least 7 points.
Colours: Paul Tol's medium-contrast scheme (personal.sron.nl/~pault); line styles and markers repeat the distinction."""

import importlib.util
import inspect
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Code
from matplotlib import font_manager
from matplotlib.colors import to_rgb
from scipy.optimize import isotonic_regression

from lib.generate import OTHERS
from lib.metrics import mean_interval

INK, GREY, PALE = "#222222", "#767676", "#BBBBBB"
COLORS = ("#004488", "#DDAA33", "#994455", "#6699CC", "#997700", "#117733", INK)
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 2)))
WIDTH = 6.3  # inches: a figure's, the 16 cm of the report's text
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
BYTES = re.compile(r"<[0-9A-F]{2}( [0-9A-F]{2})*>")  # how lib.generate.token_text writes a fragment
# Chinese: Noto Sans CJK SC of the wheel mplfonts, which is not imported: that would change matplotlib
NOTO = Path(importlib.util.find_spec("mplfonts").submodule_search_locations[0]) / "fonts" / "NotoSansCJKsc-Regular.otf"
font_manager.fontManager.addfont(NOTO)
plt.style.use(Path(__file__).with_name("figures.mplstyle"))
mpl.rcParams["axes.prop_cycle"] = mpl.cycler(color=COLORS, linestyle=LINES)
# the second where the first has no glyph
mpl.rcParams["font.family"] = ["DejaVu Sans", font_manager.FontProperties(fname=NOTO).get_name()]


def look(i: int) -> dict:
    """Colour and line style of the i-th series; fourteen differ."""
    return {"color": COLORS[i % 7], "linestyle": LINES[(i + i // 7) % 7]}


def note(ax: plt.Axes, text: str, at: tuple, offset: tuple, **options):
    """`text` at `offset` points from the data point `at`."""
    return ax.annotate(text, at, offset, textcoords="offset points", **{"fontsize": 7.5} | options)


def visible(token: str) -> str:
    """A token with its white space to see; `$` would start mathematics."""
    if token == OTHERS or BYTES.fullmatch(token):
        return token
    return token.replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥").replace("$", r"\$")


def label_lines(ax: plt.Axes) -> None:
    """Write each labelled line's label beside its right end, as near as labels 11 points apart can stand."""
    ax.autoscale_view()
    ax.figure.draw_without_rendering()
    ends = []
    for line in ax.get_lines():
        xy = np.ma.compress_rows(np.ma.masked_invalid(line.get_xydata()))
        if len(xy) and not line.get_label().startswith("_"):
            ends.append([ax.transData.transform(xy[-1])[1] * 72 / ax.figure.dpi, xy[-1], line])
    ends, apart = sorted(ends, key=lambda e: e[0]), 11 * np.arange(len(ends))
    heights = isotonic_regression(np.array([e[0] for e in ends]) - apart).x + apart if ends else ()
    right = max((e[1][0] for e in ends), default=0)
    for height, (wanted, end, line) in zip(heights, ends, strict=True):
        rgb = np.array(to_rgb(line.get_color()))
        dark = tuple(rgb * min(1.0, 0.4 / (rgb @ (0.2126, 0.7152, 0.0722))))  # enough for text on white
        style = {"va": "center", "color": dark, "fontsize": 9, "annotation_clip": False}
        note(ax, line.get_label(), (right, end[1]), (8, height - wanted), **style)


def _grid(panels: int, columns: int, height: float, **options):
    """Figure and axes (rows, columns) for `panels`, each `height` inches high; those left over are hidden."""
    columns = min(columns, panels)
    rows = -(-panels // columns)
    fig, axes = plt.subplots(rows, columns, squeeze=False, figsize=(WIDTH, height * rows), **options)
    for ax in axes.flat[panels:]:
        ax.set_visible(False)
    return fig, axes


def loss_curves(df: pd.DataFrame, measure="bits_per_byte", x="tokens", ylabel="held-out bits per byte"):
    """Columns method, seed, `x`, `measure`: each seed thin, the mean over seeds bold and labelled."""
    fig, ax = plt.subplots()
    for i, (method, runs) in enumerate(df.dropna(subset=[measure]).groupby("method", sort=False)):
        for _, run in runs.groupby("seed"):
            ax.plot(run[x], run[measure], linewidth=0.7, alpha=0.5, **look(i))
        # by evaluation and not by `x`: the seeds' packed rows hold slightly different numbers of tokens
        mean = runs.groupby(runs.groupby("seed").cumcount())[[x, measure]].mean()
        ax.plot(mean[x], mean[measure], label=method, marker=MARKERS[i % 7], markersize=4, **look(i))
    ax.xaxis.set_major_formatter(lambda v, _: f"{v:,.0f}")
    ax.set(xlabel=x, ylabel=ylabel)
    label_lines(ax)
    return fig


def before_after(df: pd.DataFrame, measures: Mapping[str, str]):
    """Columns method, stage ("before", "after"), seed and the keys of `measures`, whose values are axis titles: one
    panel each, open dot before, which is the start of every method, filled dot after with the 95 % t interval over
    seeds."""
    after, before = df[df["stage"] == "after"], df[df["stage"] == "before"]
    methods = list(dict.fromkeys(after["method"]))
    fig, axes = _grid(len(measures), len(measures), 0.9 + 0.5 * len(methods), sharey=True)
    for ax, (key, title) in zip(axes[0], measures.items(), strict=True):
        digits = max(0, 2 - math.floor(math.log10(df[key].abs().max() or 1)))  # three figures, aligned
        for y, method in enumerate(methods):
            old = before[key].mean()
            values = after.loc[after["method"] == method, key].dropna()
            ax.annotate("", (values.mean(), y), (old, y), arrowprops={"arrowstyle": "->", "color": GREY})
            ax.plot(old, y, "o", markerfacecolor="white", markeredgecolor=INK, markersize=7)
            new = _interval(ax, values, y, y)
            pair = sorted([(old, "before"), (new, "after")], key=lambda end: end[0])
            for (value, name), (side, shift) in zip(pair, (("right", -3), ("left", 3)), strict=True):
                text = f"{value:.{digits}f}" if y else f"{name}\n{value:.{digits}f}"
                note(ax, text, (value, y), (shift, 7), ha=side, fontsize=9)
        ax.margins(x=0.25)
        ax.set(title=title, ylim=(len(methods) - 0.5, -0.9))
        ax.grid(axis="y", visible=False)
        ax.set_yticks(range(len(methods)), methods)
    return fig


def _interval(ax: plt.Axes, values: Sequence[float], y: float, i: int, top: float = math.inf) -> float:
    """The mean as the i-th series' mark with its 95 % interval as a bar; returns the mean."""
    mean, low, high = mean_interval(values, top)
    bar = {"color": COLORS[i % 7], "linewidth": 4, "alpha": 0.45, "linestyle": "-", "solid_capstyle": "butt"}
    ax.plot([low, high], [y, y], **bar)
    ax.plot(mean, y, MARKERS[i % 7], color=COLORS[i % 7], markersize=7)
    return mean


def dots(
    df: pd.DataFrame, value, row, panel=None, titles=None, rows=(), family=None, top=math.inf, form=".3f", xlabel=None
):
    """One row per value of the column `row`: every seed a small dot, the mean with its number and 95 % interval (of
    shares of `top`). One panel per key of `titles`, a value of the column `panel`; each has its own rows, or all have
    `rows` and one axis. Rows with one value of `family` look alike; one without a number says "not measured"."""
    titles = titles or {None: ""}
    parts = {key: df if panel is None else df[df[panel] == key] for key in titles}
    kinds = list(dict.fromkeys(df[family] if family else rows or df[row]))
    most = len(rows) or max(part[row].nunique() for part in parts.values())
    shared = {"sharex": True, "sharey": True} if rows else {}
    fig, axes = _grid(len(titles), 3 if rows else 2, 0.8 + 0.25 * most, **shared)
    for ax, (key, part) in zip(axes.flat, parts.items(), strict=False):
        names = list(rows or dict.fromkeys(part[row]))
        for y, name in enumerate(names):
            runs = part[part[row] == name]
            values = runs[value].dropna()
            if values.empty:
                if len(runs):
                    note(ax, "not measured", (df[value].min(), y), (0, 0), va="center", color=INK)
                continue
            mean = _interval(ax, values, y, kinds.index(runs[family].iloc[0] if family else name), top)
            ax.plot(values, [y] * len(values), "o", color=INK, markersize=2.5, zorder=3)
            note(ax, f"{mean:{form}}", (mean, y), (0, 6), ha="center")
        ax.set_yticks(range(len(names)), names)
        ax.grid(axis="y", visible=False)
        ax.margins(x=0.12)
        ax.set(title=titles[key], xlabel=xlabel or value, ylim=(most - 0.5, -0.8))
        if rows:
            ax.label_outer()
    return fig


def bars(df: pd.DataFrame, label="token", value="probability", panel="setting"):
    """Horizontal bars with their numbers, one panel per value of the column `panel`; labels and scale are shared."""
    groups = list(df.groupby(panel, sort=False))
    names = list(dict.fromkeys(df[label]))
    fig, axes = _grid(len(groups), 3, 0.45 + 0.14 * len(names), sharex=True, sharey=True)
    for ax, (title, group) in zip(axes.flat, groups, strict=False):
        values = group.set_index(label)[value].reindex(names).to_numpy()
        colors = [PALE if n == OTHERS else COLORS[0] for n in names]
        drawn = ax.barh(range(len(names)), values, color=colors, height=0.72)
        said = ["0" if v < 5e-7 else f"{v:.3f}" if v >= 0.0005 else "<0.001" for v in values]
        ax.bar_label(drawn, said, padding=3, fontsize=7.5)
        ax.set_title(title, fontsize=9)
        ax.set_yticks(range(len(names)), [visible(str(n)) for n in names], fontsize=7.5)
        ax.grid(axis="y", visible=False)
    axes[0, 0].invert_yaxis()
    axes[0, 0].set_xlim(0, df[value].max() * 1.22)
    for ax in axes[-1]:
        ax.set_xlabel(value)
    return fig


def strips(texts: Mapping[str, Mapping[str, Sequence[str]]]):
    """{title: {encoding: its tokens, as lib.generate.token_text writes them}}: under each title a row of boxes per
    encoding, one box per token, wrapped, the count behind the name. Parts of a character stand as <E6 98> in an
    outlined box, [UNK] in a dark one."""
    fig, ax = plt.subplots(figsize=(WIDTH, 1), layout="none")
    ax.set_position((0, 0, 1, 1))
    ax.set_axis_off()
    left, height, y = 84.0, 16.0, 0.0  # points: the column of names, from one row of boxes to the next
    for title, rows in texts.items():
        ax.text(0, y, title, va="center", fontsize=9, parse_math=False)
        for name, tokens in rows.items():
            y, x = y - height * 1.15, left
            ax.text(0, y, name, va="center", fontsize=8)
            ax.text(left - 6, y, f"{len(tokens)}", va="center", ha="right", fontsize=8, color=GREY)
            for n, token in enumerate(tokens):
                broken, strange = BYTES.fullmatch(token) is not None, token == "[UNK]"
                ink, face = ("white", INK) if strange else (INK, ("#D6E3F2", "#F6E7C1")[n % 2])
                text = ax.text(0, y, visible(token), va="center", fontsize=7.2 if broken or strange else 8.5, color=ink)
                advance = text.get_window_extent(fig.canvas.get_renderer()).width * 72 / fig.dpi + 4
                if x + advance > WIDTH * 72:
                    x, y = left, y - height
                text.set_position((x + 1.6, y))
                box = {"facecolor": face, "edgecolor": GREY if broken else "white", "linewidth": 0.5, "zorder": 0}
                ax.add_patch(plt.Rectangle((x, y - 6.5), advance - 0.8, 13, **box))
                x += advance
        y -= height * 1.6
    low = y + height * 0.9
    ax.set(xlim=(0, WIDTH * 72), ylim=(low, 10))
    fig.set_size_inches(WIDTH, (10 - low) / 72)
    return fig


def lines(
    df, x, y, series, panel=None, logx=True, logy=False, ylabel=None, xlabel=None, top=None, sharey=True, height=3.2
):
    """One line per value of `series`, the mean over `seed` where there is one, with its range as a band; one panel per
    value of `panel`. `top` cuts the y axis: the largest value above is written at the edge."""
    panels = [("", df)] if panel is None else list(df.groupby(panel, sort=False))
    fig, axes = _grid(len(panels), len(panels), height, sharey=sharey)
    for ax, (title, part) in zip(axes[0], panels, strict=True):
        for i, name in enumerate(dict.fromkeys((df if sharey else part)[series])):
            groups = part[part[series] == name].groupby(x)[y]
            mean, low, high = groups.mean(), groups.min(), groups.max()
            if mean.empty:
                continue
            if top is not None and (above := mean[mean > top]).size:
                at, offset = (above.index[0], top), (0, -3 - 10 * i)
                note(ax, f"{name}: up to {above.max():.1f}", at, offset, va="top", ha="right", color=COLORS[i % 7])
            mean, low, high = (x.clip(upper=top) for x in (mean, low, high))
            style = {"marker": MARKERS[i % 7] if len(mean) <= 20 else "", "markersize": 3.5} | look(i)
            ax.plot(mean.index, mean, label=str(name), **style)
            ax.fill_between(mean.index, low, high, color=COLORS[i % 7], alpha=0.15, linewidth=0)
        if logx:
            ticks = sorted(part[x].unique())
            ax.set_xscale("log", base=2)
            ax.set_xticks(ticks, [f"{t:,.0f}" for t in ticks])
            ax.minorticks_off()
        if logy:
            ax.set_yscale("log")
            if ax.get_ylim()[1] < 10 * ax.get_ylim()[0]:  # else its ticks would be such as 9 x 10^1
                ax.yaxis.set_major_formatter("{x:g}")
                ax.yaxis.set_minor_formatter("{x:g}")
        ax.set(title=str(title), xlabel=xlabel or x)
    for ax in axes[0]:  # behind the last panel's lines, which share the axis
        if top is not None:
            ax.set_ylim(top=top)
        label_lines(ax)
    axes[0, 0].set_ylabel(ylabel or y)
    return fig


def source(*parts) -> Code:
    """The code of functions and classes of `lib`, coloured, as a notebook shows it."""
    return Code("\n\n".join(map(inspect.getsource, parts)), language="python")
