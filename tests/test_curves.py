"""The figures of notebook 04 show the numbers and tokens they were given; equal compute and speed are counted right."""

import logging
import warnings
from dataclasses import replace

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
import pytest

from lib import plots
from lib.explore import curves, scratch
from lib.explore.scratch import Recipe


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PROFILE", "fast")
    monkeypatch.setenv("FAST_OUTPUT", str(tmp_path))
    yield
    plt.close("all")


def table():
    return pd.DataFrame(
        [
            {
                "corpus": c,
                "encoding": e,
                "label": f"{e} {v:,}",
                "vocab_size": v,
                "budget": b,
                "seed": s,
                "bits_per_byte": base + s / 50 + (b == "compute") / 10,
            }
            for c, shift in (("debian", 0), ("tang", 1))
            for b in ("bytes", "compute")
            for s in (0, 1, 2)
            for e, v, base in (("bytes", 257, 2.3 + shift), ("bpe", 512, 2.1 + shift), ("bpe", 1024, 2.05 + shift))
        ]
    )


BUDGETS = {"bytes": "equal bytes", "compute": "equal compute"}
DRAW = {"by_vocabulary": lambda: curves.by_vocabulary(table()[lambda df: df.corpus == "tang"], BUDGETS)}


@pytest.mark.parametrize("name", DRAW)
def test_same_bytes_twice_and_every_glyph(name, caplog):
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING, logger="matplotlib"):
        warnings.simplefilter("error")  # among them "Glyph ... missing from font(s)"
        first = plots.save_figure(DRAW[name](), name, "").read_bytes()
        assert plots.save_figure(DRAW[name](), name, "").read_bytes() == first
    assert not caplog.records


def test_by_vocabulary_has_a_labelled_line_per_budget_through_the_means():
    (ax,) = curves.by_vocabulary(table()[lambda df: df.corpus == "debian"], BUDGETS).axes
    lines = {n: x for x in ax.get_lines() if (n := x.get_label()) in BUDGETS.values()}
    assert list(lines["equal bytes"].get_ydata()) == pytest.approx([2.32, 2.12, 2.07])
    assert list(lines["equal compute"].get_ydata()) == pytest.approx([2.42, 2.22, 2.17])
    assert {t.get_text() for t in ax.texts} == set(BUDGETS.values())
    assert [t.get_text() for t in ax.get_xticklabels()] == ["bytes\n257", "512", "1,024"]


# --- what lib.explore.scratch adds for notebook 04


def tiny(encoding="bytes", **fields):
    return Recipe(seed=0, encoding=encoding, vocab_size=None, n_layer=2, n_embd=32, **fields)


def test_flops_count_blocks_output_layer_and_causal_attention():
    model = scratch.build(257, n_layer=2, n_embd=32)
    blocks = sum(p.numel() for p in model.transformer.h.parameters())
    counted = 6 * 1_000 * (blocks + 257 * 32 + 2 * 32 * 64)
    assert scratch.flops(tiny(train_length=64), 1_000) == counted


def test_equal_compute_scales_the_text_and_nothing_else():
    reference = tiny("gpt2", train_length=140, train_bytes=200_000)
    cost = scratch.flops(reference, scratch.expected_tokens(reference))
    assert scratch.at_equal_compute(reference, cost) == reference
    other = tiny(train_length=512, train_bytes=200_000)
    scaled = scratch.at_equal_compute(other, cost)
    assert scaled.train_bytes % 1_000 == 0 and scaled.train_bytes > 2 * other.train_bytes
    assert scratch.flops(scaled, scratch.expected_tokens(scaled)) == pytest.approx(cost, rel=0.005)
    assert replace(scaled, train_bytes=200_000) == other


def test_expected_tokens_count_eos_of_each_document(monkeypatch):
    monkeypatch.setattr(scratch, "documents", lambda *_: ["abcd", "efgh"])
    assert scratch.expected_tokens(tiny(train_bytes=800)) == 1_000


def test_speed_is_the_median_of_rounds_in_turns(monkeypatch):
    seconds = {"bytes": [9.0, 2.0, 1.0, 4.0], "characters": [9.0, 1.0, 1.0, 3.0]}  # first: warming up
    order = []

    def timer(recipe):
        return lambda steps: order.append((recipe.encoding, steps)) or seconds[recipe.encoding].pop(0)

    monkeypatch.setattr(scratch, "_step_timer", timer)
    monkeypatch.setattr(scratch, "expected_tokens", lambda r: r.train_bytes // 2)
    got = scratch.training_speed([tiny(train_length=10), tiny("characters", train_length=10)], 5)
    assert order == [("bytes", 2), ("characters", 2)] + 3 * [("bytes", 5), ("characters", 5)]
    assert list(got.tokens_per_second) == [5 * 4 * 10 / 2, 5 * 4 * 10 / 1]
    assert list(got.bytes_per_second) == [200, 400]


def test_a_timed_step_trains():
    run = scratch._step_timer(tiny(train_length=32))
    assert run(1) > 0
    (weights,) = (c.cell_contents for c in run.__closure__ if hasattr(c.cell_contents, "lm_head"))
    fresh = scratch.build(257, n_layer=2, n_embd=32)
    assert not weights.lm_head.weight.equal(fresh.lm_head.weight)
