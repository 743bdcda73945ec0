"""lib.frontier: the front, the free control, general text, and what is kept of a measurement."""

import math
from dataclasses import replace

import pandas as pd
import pytest

from lib import findings, frontier, innovation_plots, profile
from lib.frontier import VARIANTS, Variant, against_interpolation, general_text, summary
from lib.models import load_base
from lib.tasks import load_task


@pytest.fixture(autouse=True)
def nothing_from_outside(monkeypatch):
    monkeypatch.setattr(frontier, "out_of_reach", lambda name: "not in this test")


@pytest.fixture(scope="module")
def base():
    return load_base()


@pytest.fixture(scope="module")
def task():
    whole = load_task("debian")
    return replace(
        whole, train=whole.train[:60], validation=whole.validation[:4], test=whole.test[:4]
    )


def row(method, setting, seed, task, general):
    return {"method": method, "setting": setting, "seed": seed, "bits_per_byte": task,
            "wikitext2_bits_per_byte": general}  # fmt: skip


def made(extra=()):
    """Before at (2.0, 1.0), full at (1.0, 2.0), and the interpolation bowed towards the corner."""
    rows = [row("none", "before", 0, 2.0, 1.0)]
    for seed in range(3):
        shift = 0.01 * seed
        rows.append(row("full", "lr 1e-4", seed, 1.0 + shift, 2.0))
        rows += [
            row("interpolation", f"alpha {a}", seed, 2 - a + shift * a, 1 + a**2)
            for a in frontier.ALPHAS
        ]
    return pd.DataFrame([*rows, *extra])


def test_the_front_holds_what_nothing_beats_in_both():
    extra = [
        row("LoRA", "rank 4", s, 1.5, 1.26) for s in range(3)
    ]  # worse than alpha 0.5 in general alone
    extra += [row("replay", "x", s, 1.2, 1.1 + 0.01 * s) for s in range(3)]
    table = summary(made(extra), "wikitext2_bits_per_byte").set_index(["method", "setting"])
    front = {k for k, on in table["front"].items() if on}
    assert front == {
        ("none", "before"),
        ("full", "lr 1e-4"),
        ("interpolation", "alpha 0.25"),
        ("replay", "x"),
    }
    assert table.loc[("replay", "x"), "general"] == pytest.approx(1.11)
    half = 4.302653 * 0.01 / math.sqrt(3)
    assert table.loc[("replay", "x"), "general_high"] == pytest.approx(1.11 + half, abs=1e-6)
    assert math.isnan(table.loc[("none", "before"), "general_low"])


def test_a_tie_is_on_the_front_and_a_double_is_not_beaten_by_itself():
    df = pd.DataFrame(
        [row("none", "before", 0, 1.0, 1.0), row("a", "", 0, 1.0, 1.0), row("b", "", 0, 1.0, 1.1)]
    )
    assert summary(df, "wikitext2_bits_per_byte")["front"].tolist() == [True, True, False]


def test_the_control_is_read_off_at_the_same_gain_of_the_same_seed():
    extra = [
        row("LoRA", "rank 4", s, 1.75 + 0.0025 * s, 1.0 + 0.25**2 + 0.2) for s in range(3)
    ]  # at alpha 0.25
    extra += [row("Muon", "y", s, 0.5, 1.0) for s in range(3)]  # gains more than the way goes
    extra += [row("replay", "x", 0, 1.625, 1.0)]  # half-way between alpha 0.25 and 0.5
    found = against_interpolation(made(extra), "wikitext2_bits_per_byte").set_index("method")
    assert found.loc["LoRA", "difference"] == pytest.approx(0.2)
    assert found.loc["LoRA", "low"] == pytest.approx(0.2) and found.loc["LoRA", "seeds"] == 3
    assert found.loc["Muon", "seeds"] == 0 and math.isnan(found.loc["Muon", "difference"])
    assert found.loc["replay", "difference"] == pytest.approx(1.0 - (1.0625 + 1.25) / 2)
    assert "full" not in found.index and "none" not in found.index
    said = findings.frontier_findings(made(extra), summary(made(extra), "wikitext2_bits_per_byte"),
                                      found.reset_index(), "wikitext2_bits_per_byte")  # fmt: skip
    said = "\n".join(said)
    assert (
        "LoRA, rank 4, against interpolation at the same gain: +0.2000" in said
        and "forgets more" in said
    )
    assert "Muon, y, against interpolation at the same gain: its gain lies outside" in said
    assert said.startswith(
        "Finding: shown to forget less than the free control at the same gain: none (3 "
    )
    assert "not shown to beat the free control: LoRA, rank 4; Muon, y; replay, x." in said


def test_general_text_is_what_was_measured():
    assert frontier.general_measure(made()) == "wikitext2_bits_per_byte"
    without = made().rename(columns={"wikitext2_bits_per_byte": "base_samples_bits_per_byte"})
    assert frontier.general_measure(without) == "base_samples_bits_per_byte"


def test_general_text_comes_from_the_base_model_once(base, monkeypatch):
    first = general_text(base, 300, 0)
    assert sum(len(d.input_ids) for d in first) >= 300
    assert all(d.input_ids[0] == d.input_ids[-1] == base.tokenizer.eos_token_id for d in first)
    assert all(
        d.target_bytes == len(base.tokenizer.decode(d.input_ids[1:-1]).encode()) for d in first
    )
    other = general_text(base, 300, 1)
    assert {tuple(d.input_ids) for d in first}.isdisjoint(tuple(d.input_ids) for d in other)

    def refuse(*_, **__):
        raise AssertionError("sampled again")

    monkeypatch.setattr(frontier, "generate", refuse)
    assert general_text(base, 300, 0) == first


def test_a_table_of_two_ways_is_measured_once(base, task, monkeypatch):
    ways = [VARIANTS[0], Variant("replay", "25 % general", "full", {"replay_share": 0.25})]
    table = frontier.table(base, task, ways, (0,))
    assert table["method"].tolist() == ["none", "full", *["interpolation"] * 3, "replay"]
    assert (table["base_samples_bits_per_byte"] > 0).all() and table["seed"].eq(0).all()
    full = table[table["method"] == "full"].iloc[0]
    p = profile.current().innovation
    assert full["learning_rate"] == 1e-4 and full["tokens"] > 0.5 * p.frontier_tokens
    ordered = table.set_index("setting").loc[
        ["before", "alpha 0.25", "alpha 0.75", "lr 1e-4"], "bits_per_byte"
    ]
    assert ordered.is_monotonic_decreasing  # on the way from before to after

    def refuse(*_, **__):
        raise AssertionError("again")

    monkeypatch.setattr(frontier, "measure", refuse)
    monkeypatch.setattr(frontier.train, "finetune", refuse)
    pd.testing.assert_frame_equal(frontier.table(base, task, ways, (0,)), table)


def test_without_muon_the_others_run(monkeypatch, capsys):
    monkeypatch.setattr(frontier, "no_muon", lambda: "optimizer='muon' needs torch 2.9")
    assert [v.method for v in frontier.possible()] == [
        v.method for v in VARIANTS if v.method != "Muon"
    ]
    assert "Skipped: optimizer='muon' needs torch 2.9" in capsys.readouterr().out


def test_the_figure_marks_the_front_and_labels_every_point():
    table = summary(
        made([row("LoRA", "rank 4", s, 1.5, 1.6) for s in range(3)]), "wikitext2_bits_per_byte"
    )
    figure = innovation_plots.front(table, "general")
    texts = {t.get_text() for t in figure.axes[0].texts}
    assert {"before", "full, lr 1e-4", "interpolation, alpha 0.5", "LoRA, rank 4"} <= texts
    points = [line for line in figure.axes[0].lines if line.get_marker() not in ("None", "", None)]
    filled = sum(line.get_markerfacecolor() != "white" for line in points)
    assert filled == table["front"].sum() and len(points) == len(table)
