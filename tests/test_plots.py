"""Figures: the same data gives the same bytes, Chinese has glyphs, labels do not collide, the marks are the data."""

import logging
import warnings

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
import pytest

from lib import metrics, plots
from lib.results import Results

LINE = "床前明月光，疑是地上霜。"
TOKENS = {"bytes": ["<E5 BA>", "<8A>", "$x"], "characters": ["床", "[UNK]", "\n"]}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FAST_OUTPUT", str(tmp_path))
    yield tmp_path / "figures"
    plt.close("all")


def curves():
    methods = (("full", 0.9), ("lora", 0.901), ("last_blocks", 1.1))
    rows = [(m, s, t, b + 1 / (1 + t) + s / 100) for m, b in methods for s in (0, 1) for t in range(5)]
    return pd.DataFrame(rows, columns=["method", "seed", "tokens", "bits_per_byte"])


def stages():
    rows = [("none", "before", 0, 1.6, 17.0)]
    rows += [(m, "after", s, b + s / 50, 30 + s) for m, b in (("full", 0.9), ("lora", 1.0)) for s in range(3)]
    return pd.DataFrame(rows, columns=["method", "stage", "seed", "bits_per_byte", "chrf"])


def measured():
    kinds = (("bytes", "bytes 257", 2.3), ("bpe", "bpe 512", 2.1), ("bpe", "bpe 1,024", 2.05))
    rows = [(c, e, n, s, b + s / 50) for c in ("debian", "tang") for e, n, b in kinds for s in (0, 1, 2)]
    return pd.DataFrame(rows, columns=["corpus", "encoding", "label", "seed", "bits_per_byte"])


def dots():
    return plots.dots(measured(), "bits_per_byte", "label", "corpus", {"tang": "中文"}, family="encoding")


ODDS = [{"setting": "温度 1.0", "token": t, "probability": 0.2} for t in ("月", "<E6 9C>", "\n", plots.OTHERS)]
DRAW = {
    "loss_curves": lambda: plots.loss_curves(curves()),
    "before_after": lambda: plots.before_after(stages(), {"bits_per_byte": "bits per byte", "chrf": "chrF"}),
    "dots": lambda: dots(),
    "bars": lambda: plots.bars(pd.DataFrame(ODDS)),
    "strips": lambda: plots.strips({LINE: TOKENS, "costs $0": {"bpe": ["costs", " $0"]}}),
    "lines": lambda: plots.lines(curves(), "tokens", "bits_per_byte", "method", logx=False),
}


@pytest.mark.parametrize("name", DRAW)
def test_same_bytes_twice_and_every_glyph(name, folder, caplog):
    written = []
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING, logger="matplotlib"):
        warnings.simplefilter("error")  # among them "Glyph ... missing from font(s)"
        for _ in range(2):
            results = Results("02_finetune")
            results.figure(DRAW[name](), f"02_{name}", "Caption.")
            results.save()
            written.append([(folder / f"02_{name}.{suffix}").read_bytes() for suffix in ("svg", "png")])
    assert written[0] == written[1]
    printed = min(1, plots.WIDTH / (plt.imread(folder / f"02_{name}.png").shape[1] / mpl.rcParams["savefig.dpi"]))
    assert min(text.get_fontsize() for text in plt.gcf().findobj(mpl.text.Text)) * printed >= 7
    assert written[0][0].count(b"<text") == 0  # outlines, no reliance on the reader's fonts
    assert not caplog.records  # no "findfont: ..." either


def test_labels_are_the_data_and_do_not_collide():
    (ax,) = plots.before_after(stages(), {"bits_per_byte": "bits per byte"}).axes
    assert {"before\n1.60", "after\n0.92", "1.60", "1.02"} <= {t.get_text() for t in ax.texts}
    (same,) = plots.before_after(stages().assign(bits_per_byte=1.2), {"bits_per_byte": "bits per byte"}).axes
    (lines,) = plots.loss_curves(curves()).axes
    for ax, count in ((same, 4), (lines, 3)):
        ax.figure.draw_without_rendering()
        boxes = [t.get_window_extent() for t in ax.texts if t.get_text()]
        assert len(boxes) == count and not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert [t.get_text() for t in lines.texts] == ["full", "lora", "last_blocks"]


def test_dots_show_every_seed_the_mean_and_the_interval_or_that_nothing_was_measured():
    ax = dots().axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["bytes 257", "bpe 512", "bpe 1,024"]
    assert [t.get_text() for t in ax.texts] == ["2.320", "2.120", "2.070"]
    bar, mean, seeds = (list(line.get_xdata()) for line in ax.get_lines()[:3])
    assert bar == pytest.approx(metrics.mean_interval([2.3, 2.32, 2.34])[1:])
    assert seeds == pytest.approx([2.3, 2.32, 2.34]) and mean[0] == pytest.approx(2.32)
    ax = plots.dots(measured(), "bits_per_byte", "label", rows=["bytes 257", "chance"], top=2.33).axes[0]
    assert 2.32 < max(ax.get_lines()[0].get_xdata()) < 2.33, "an interval of shares"


def test_lines_average_seeds_and_name_what_leaves_the_panel():
    steps = {"low": 1, "high": 10}
    rows = [(x, name, x * (1 + seed) * step) for x in (1, 2, 4) for seed in (0, 1) for name, step in steps.items()]
    (ax,) = plots.lines(pd.DataFrame(rows, columns=["x", "name", "y"]), "x", "y", "name", top=10).axes
    low, high = (line.get_ydata() for line in ax.get_lines())
    assert low.tolist() == [1.5, 3.0, 6.0]
    assert high.max() == 10, "clipped at the panel's edge"
    assert any("high: up to 60.0" in t.get_text() for t in ax.texts)
