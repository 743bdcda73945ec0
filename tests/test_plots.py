"""Figures: the same data gives the same bytes, Chinese has glyphs, labels do not collide."""

import json
import logging
import warnings

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from lib import plots, style
from lib.models import tiny_tokenizer

LINE = "床前明月光，疑是地上霜。"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PROFILE", "fast")
    monkeypatch.setenv("FAST_OUTPUT", str(tmp_path))
    yield tmp_path / "figures"
    plt.close("all")


def curves():
    return pd.DataFrame(
        [
            {"method": m, "seed": s, "tokens": t, "bits_per_byte": b + 1 / (1 + t) + s / 100}
            for m, b in (("full", 0.9), ("lora", 0.901), ("last_blocks", 1.1))
            for s in (0, 1)
            for t in range(5)
        ]
    )


def stages():
    rows = [{"method": "none", "stage": "before", "seed": 0, "bits_per_byte": 1.6, "chrf": 17.0}]
    rows += [
        {"method": m, "stage": "after", "seed": s, "bits_per_byte": b + s / 50, "chrf": 30 + s}
        for m, b in (("full", 0.9), ("lora", 1.0))
        for s in range(3)
    ]
    return pd.DataFrame(rows)


def odds():
    tokens = ["月", "<E6 9C>", " the", "\n", plots.OTHERS]
    return pd.DataFrame(
        [{"setting": s, "token": t, "probability": 0.2} for s in ("greedy", "温度 1.0") for t in tokens]
    )


DRAW = {
    "histogram": lambda: plots.histogram({"train": range(1, 90), "test": range(5, 50)}),
    "loss_curves": lambda: plots.loss_curves(curves()),
    "before_after": lambda: plots.before_after(stages(), {"bits_per_byte": "bits per byte", "chrf": "chrF"}),
    "heatmap": lambda: plots.heatmap(np.tril(np.ones((12, 12))), list(LINE), list(LINE), "第 5 层 $x"),
    "similarity": lambda: plots.similarity(np.eye(16), "位置"),
    "bars": lambda: plots.bars(odds()),
    "token_strip": lambda: plots.token_strip([LINE, "apt costs $0.\n"], tiny_tokenizer([LINE] * 3, 275)),
}


@pytest.mark.parametrize("name", DRAW)
def test_same_bytes_twice_and_every_glyph(name, folder, caplog):
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING, logger="matplotlib"):
        warnings.simplefilter("error")  # among them "Glyph ... missing from font(s)"
        path = plots.save_figure(DRAW[name](), name, "First.")
        first = path.read_bytes(), path.with_suffix(".png").read_bytes()
        plt.close("all")
        plots.save_figure(DRAW[name](), name, "Second, 第二。")
    assert (path.read_bytes(), path.with_suffix(".png").read_bytes()) == first
    assert first[0].count(b"<text") == 0  # outlines, no reliance on the reader's fonts
    assert json.loads((folder / "captions.json").read_text("utf-8")) == {name: "Second, 第二。"}
    assert not list(folder.glob(".*"))  # no part of an atomic write stays
    assert not caplog.records  # no "findfont: ..." either


def test_missing_glyphs_would_be_noticed(monkeypatch):
    with monkeypatch.context() as m, warnings.catch_warnings():
        m.setitem(mpl.rcParams, "font.family", ["DejaVu Sans"])
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="Glyph"):
            plots.save_figure(DRAW["heatmap"](), "boxes", "")


def test_without_any_chinese_font_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(style, "CJK_FONTS", ())
    monkeypatch.setattr(style.importlib.util, "find_spec", lambda _: None)
    assert style.cjk_font() is None
    out = capsys.readouterr().out
    assert "pip install mplfonts" in out and out.count("\n") == 1


def test_captions_of_other_figures_stay_sorted(folder):
    for name in ("b", "a"):
        plots.save_figure(plt.figure(), name, f"Caption {name}.")
    captions = json.loads((folder / "captions.json").read_text("utf-8"))
    assert list(captions.items()) == [("a", "Caption a."), ("b", "Caption b.")]


def test_labels_do_not_collide():
    fig = plots.loss_curves(curves())
    fig.draw_without_rendering()
    boxes = [t.get_window_extent() for t in fig.axes[0].texts]
    assert [t.get_text() for t in fig.axes[0].texts] == ["full", "lora", "last_blocks"]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_caption_names_seeds_budget_and_stand_in():
    provenance = {"seeds": [0, 1], "profile": "full", "base_model": "SmolLM2-135M (stand-in)", "stand_in": True}
    text = plots.caption("Loss.", provenance, tokens=160_000)
    assert text == (
        "Loss. Seeds 0, 1; profile full, 160,000 training tokens per run; SmolLM2-135M (stand-in), not GPT-2 117M."
    )
    real = provenance | {"base_model": "openai-community/gpt2", "stand_in": False}
    assert "not GPT-2" not in plots.caption("Loss.", real)


def test_colours_differ_in_grey():
    grey = sorted(np.array(mpl.colors.to_rgb(c)) @ (0.2126, 0.7152, 0.0722) for c in style.COLORS)
    assert np.diff(grey).min() > 0.05


def test_before_after_values_are_the_data():
    fig = plots.before_after(stages(), {"bits_per_byte": "bits per byte"})
    shown = {t.get_text() for t in fig.axes[0].texts}
    assert {"before\n1.60", "after\n0.92", "1.60", "1.02"} <= shown


def test_a_cut_axis_still_shows_the_lowest_line_of_every_panel():
    rows = [{"x": x, "y": y, "name": "a", "panel": p} for p, y in (("one", 5), ("two", 1)) for x in (1, 2)]
    fig = plots.lines(pd.DataFrame(rows), "x", "y", "name", panel="panel", top=10)
    for ax in fig.axes:
        assert ax.get_ylim()[0] <= 1 and ax.get_ylim()[1] == 10


def test_lines_average_seeds_and_name_what_leaves_the_panel():
    rows = [
        {"x": x, "seed": seed, "name": name, "y": x * (1 + seed) * (10 if name == "high" else 1)}
        for x in (1, 2, 4)
        for seed in (0, 1)
        for name in ("low", "high")
    ]
    fig = plots.lines(pd.DataFrame(rows), "x", "y", "name", top=10)
    low, high = (line.get_ydata() for line in fig.axes[0].get_lines())
    assert low.tolist() == [1.5, 3.0, 6.0]
    assert high.max() == 10, "clipped at the panel's edge"
    assert any("high: up to 60.0" in t.get_text() for t in fig.axes[0].texts)
    plt.close(fig)


def test_matrices_show_each_matrix_on_a_scale_around_zero():
    fig = plots.matrices({"a": np.eye(3), "b": -2 * np.eye(3)}, columns=2)
    limits = [ax.get_images()[0].get_clim() for ax in fig.axes if ax.get_images()]
    assert limits == [(-1, 1), (-2, 2)]
    plt.close(fig)
