"""The project's look: font, colours, rcParams, direct labels, and figures saved with their captions.

Colours: after Paul Tol's medium-contrast scheme (personal.sron.nl/~pault), greys apart; line styles and
markers repeat the distinction. Labels stand on the data instead of in a legend (Tufte 1983,
"The Visual Display of Quantitative Information").
"""

import importlib.util
import io
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import font_manager
from matplotlib.colors import to_rgb

from lib import profile
from lib.results import write_json

INK, GREY = "#222222", "#767676"
COLORS = ("#004488", "#DDAA33", "#994455", "#6699CC", "#997700", "#F2BBD0")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P")
CJK_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Source Han Sans SC",
    "Source Han Sans CN",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "PingFang SC",
    "Microsoft YaHei",
    "SimHei",
    "Hiragino Sans GB",
    "Heiti SC",
    "Noto Sans CJK JP",
    "Arial Unicode MS",
)


def cjk_font() -> str | None:
    """The name of a font with Chinese: an installed one, else Noto Sans CJK SC from the wheel `mplfonts`
    (SIL Open Font License), of which only the font file is used; None, and one line, without either.
    """
    installed = {f.name for f in font_manager.fontManager.ttflist}
    if found := next((name for name in CJK_FONTS if name in installed), None):
        return found
    wheel = importlib.util.find_spec("mplfonts")
    for folder in (wheel.submodule_search_locations or ()) if wheel else ():
        file = Path(folder) / "fonts" / "NotoSansCJKsc-Regular.otf"
        if file.is_file():
            font_manager.fontManager.addfont(file)
            return font_manager.FontProperties(fname=file).get_name()
    print("No Chinese font: Chinese will show as boxes in figures; `pip install mplfonts` brings one.")
    return None


def style() -> None:
    """Apply the project's rcParams; lib.plots does so when it is imported."""
    cjk = cjk_font()
    mpl.rcParams.update(
        {
            "font.family": ["DejaVu Sans"] + ([cjk] if cjk else []),  # the second where the first has no glyph
            "font.size": 9,
            "axes.titlesize": 10,
            "axes.titleweight": "normal",
            "axes.titlelocation": "left",
            "axes.labelsize": 9,
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.edgecolor": GREY,
            "xtick.color": GREY,
            "ytick.color": GREY,
            "xtick.labelcolor": INK,
            "ytick.labelcolor": INK,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#E6E6E6",
            "grid.linewidth": 0.6,
            "lines.linewidth": 1.8,
            "hatch.linewidth": 0.6,
            "axes.prop_cycle": mpl.cycler(color=COLORS, linestyle=LINES),
            "image.cmap": "cividis",
            "figure.figsize": (6.4, 3.6),
            "figure.constrained_layout.use": True,
            "figure.dpi": 110,
            "savefig.dpi": 200,
            "savefig.bbox": "tight",
            "savefig.facecolor": "white",
            "svg.fonttype": "path",  # outlines: the figure looks the same where the font is missing
            "svg.hashsalt": "gpt2-coursework",  # the same data gives the same bytes
        }
    )


def caption(text: str, provenance: Mapping, tokens: int | None = None) -> str:
    """`text` and what its numbers hang on, from the provenance of a results file: seeds, budget, model."""
    seeds = ", ".join(map(str, provenance.get("seeds") or ())) or "none"
    budget = f", {tokens:,} training tokens per run" if tokens else ""
    model = provenance.get("base_model") or "no pretrained model"
    stand_in = ", not GPT-2 117M" if provenance.get("stand_in") else ""
    return f"{text} Seeds {seeds}; profile {provenance['profile']}{budget}; {model}{stand_in}."


def save_figure(fig: plt.Figure, name: str, caption: str) -> Path:
    """Write figures/<name>.svg, .png and the entry of figures/captions.json, each whole or not at all.

    Below lib.profile.kept_root(); returns the path of the .svg. The same data gives the same bytes.
    """
    folder = profile.kept_root() / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        buffer = io.BytesIO()
        fig.savefig(buffer, format=suffix, metadata=metadata)
        handle, part = tempfile.mkstemp(dir=folder, prefix=f".{name}.", suffix=".part")
        with os.fdopen(handle, "wb") as file:
            file.write(buffer.getvalue())
        os.chmod(part, 0o644)
        os.replace(part, path := folder / f"{name}.{suffix}")
    captions = folder / "captions.json"
    known = json.loads(captions.read_text("utf-8")) if captions.exists() else {}
    write_json(captions, dict(sorted((known | {name: caption}).items())))
    return path


def _dark(color) -> tuple[float, ...]:
    """`color` dark enough for text on white."""
    rgb = np.array(to_rgb(color))
    luminance = rgb @ (0.2126, 0.7152, 0.0722)
    return tuple(rgb * min(1.0, 0.4 / luminance))


def label_lines(ax: plt.Axes, gap: float = 11) -> None:
    """Write each labelled line's label beside its right end, at least `gap` points apart."""
    ax.autoscale_view()
    ax.figure.draw_without_rendering()
    to_points = 72 / ax.figure.dpi
    ends = []
    for line in ax.get_lines():
        xy = np.column_stack([line.get_xdata(), line.get_ydata()]).astype(float)
        xy = xy[np.isfinite(xy).all(1)]
        if len(xy) and not line.get_label().startswith("_"):
            ends.append([ax.transData.transform(xy[-1])[1] * to_points, xy[-1], line])
    last, right = -np.inf, max((end[1][0] for end in ends), default=0)
    for wanted, end, line in sorted(ends, key=lambda e: e[0]):
        last = max(wanted, last + gap)
        at = ax.annotate(
            line.get_label(),
            (right, end[1]),
            (8, last - wanted),
            textcoords="offset points",
            va="center",
            color=_dark(line.get_color()),
            annotation_clip=False,
        )
        at.set_in_layout(True)
