"""lib.explore.frontier: the front, the free control, general text, and what is kept of a measurement."""

import math
from dataclasses import replace

import pandas as pd
import pytest

from lib import profile
from lib.explore import findings, frontier, innovation_plots
from lib.explore.frontier import VARIANTS, Variant, against_interpolation, general_text, summary
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
    return replace(whole, train=whole.train[:60], validation=whole.validation[:4], test=whole.test[:4])


def row(method, setting, seed, task, general):
    return {
        "method": method,
        "setting": setting,
        "seed": seed,
        "bits_per_byte": task,
        "wikitext2_bits_per_byte": general,
    }


def made(extra=()):
    """Before at (2.0, 1.0), full at (1.0, 2.0), and the interpolation bowed towards the corner."""
    rows = [row("none", "before", 0, 2.0, 1.0)]
    for seed in range(3):
        shift = 0.01 * seed
        rows.append(row("full", "lr 1e-4", seed, 1.0 + shift, 2.0))
        rows += [row("interpolation", f"alpha {a}", seed, 2 - a + shift * a, 1 + a**2) for a in frontier.ALPHAS]
    return pd.DataFrame([*rows, *extra])


def test_the_front_holds_what_nothing_beats_in_both():
    extra = [row("LoRA", "rank 4", s, 1.5, 1.26) for s in range(3)]  # worse than alpha 0.5 in general alone
    extra += [row("replay", "x", s, 1.2, 1.1 + 0.01 * s) for s in range(3)]
    table = summary(made(extra), "wikitext2_bits_per_byte").set_index(["method", "setting"])
    front = {k for k, on in table["front"].items() if on}
    assert front == {("none", "before"), ("full", "lr 1e-4"), ("interpolation", "alpha 0.25"), ("replay", "x")}
    assert table.loc[("replay", "x"), "general"] == pytest.approx(1.11)
    half = 4.302653 * 0.01 / math.sqrt(3)
    assert table.loc[("replay", "x"), "general_high"] == pytest.approx(1.11 + half, abs=1e-6)
    assert math.isnan(table.loc[("none", "before"), "general_low"])


def test_a_tie_is_on_the_front_and_a_double_is_not_beaten_by_itself():
    df = pd.DataFrame([row("none", "before", 0, 1.0, 1.0), row("a", "", 0, 1.0, 1.0), row("b", "", 0, 1.0, 1.1)])
    assert summary(df, "wikitext2_bits_per_byte")["front"].tolist() == [True, True, False]


def test_the_control_is_read_off_at_the_same_gain_of_the_same_seed():
    extra = [row("LoRA", "rank 4", s, 1.75 + 0.0025 * s, 1.0 + 0.25**2 + 0.2) for s in range(3)]  # at alpha 0.25
    extra += [row("Muon", "y", s, 0.5, 1.0) for s in range(3)]  # gains more than the way goes
    extra += [row("replay", "x", 0, 1.625, 1.0)]  # half-way between alpha 0.25 and 0.5
    found = against_interpolation(made(extra), "wikitext2_bits_per_byte").set_index("method")
    assert found.loc["LoRA", "difference"] == pytest.approx(0.2)
    assert found.loc["LoRA", "low"] == pytest.approx(0.2) and found.loc["LoRA", "seeds"] == 3
    assert found.loc["Muon", "seeds"] == 0 and math.isnan(found.loc["Muon", "difference"])
    assert found.loc["replay", "difference"] == pytest.approx(1.0 - (1.0625 + 1.25) / 2)
    assert "full" not in found.index and "none" not in found.index
    assert found["beyond"].to_dict() == {"LoRA": 0, "Muon": 3, "replay": 0}


def sentences(extra, seeds=range(3)):
    table = made(extra)
    table = table[table["seed"].isin(seeds)]
    column = "wikitext2_bits_per_byte"
    against = against_interpolation(table, column)
    return findings.frontier_findings(table, summary(table, column), against, column)


def test_sentences_say_what_the_free_control_supports():
    extra = [row("LoRA", "rank 4", s, 1.75 + 0.0025 * s, 1.2625) for s in range(3)]
    extra += [row("LoRA", "rank 64", s, 1.75 + 0.0025 * s, 1.0 + 0.01 * s) for s in range(3)]
    extra += [row("Muon", "lr 1e-4", s, 0.5, 1.0) for s in range(3)]
    extra += [row("L2-SP", "x", s, 2.5, 1.0) for s in range(3)]
    extra += [row("replay", "x", s, 1.75 + 0.0025 * s, 1.0625 + 0.1 * (s - 1)) for s in range(3)]
    said = sentences(extra)
    assert said[0] == (
        "Finding: shown to forget less general text than the free control, interpolation, at the same gain: LoRA, "
        "rank 64 (5 settings tried on 3 seeds, intervals not corrected for their number: forgets less 1, forgets "
        "more 1, no difference shown 1, gains more than full fine-tuning 1, gains nothing 1)."
    )
    assert said[1] == (
        "Negative result, not shown to beat the free control: LoRA, rank 4; Muon, lr 1e-4; L2-SP, x; replay, x."
    )
    assert said[2].startswith("Full fine-tuning against before: task -0.9900 [")
    assert said[2].endswith("WikiText-2 +1.0000 [+1.0000, +1.0000] bits per byte, shown.")
    said = "\n".join(said)
    assert "LoRA, rank 4, against interpolation at the same gain: +0.2000 [" in said
    assert "Muon, lr 1e-4: gains more than full fine-tuning, where the control's way ends" in said
    assert "Muon, lr 1e-4, against full, lr 1e-4, AdamW: task -0.5100 [" in said
    assert "general text -1.0000 [-1.0000, -1.0000] bits per byte, shown" in said
    assert "LoRA, rank 64, against LoRA, rank 4: task +0.0000 [" in said
    assert "L2-SP, x: gains nothing, so there is nothing to compare." in said


def test_one_seed_shows_nothing_and_says_so():
    extra = [row("LoRA", "rank 4", 0, 1.75, 1.0), row("replay", "x", 0, 1.75, 1.2)]
    said = sentences(extra, (0,))
    assert said[0].startswith("Finding: one seed shows no method to forget less general text")
    assert "below it, without an interval: LoRA, rank 4 (2 settings tried)." in said[0]
    assert said[1].endswith("not shown to beat the free control: LoRA, rank 4; replay, x.")
    assert not any("nan" in sentence for sentence in said)


def test_where_nothing_is_forgotten_the_sentences_say_that():
    table = made().replace({"wikitext2_bits_per_byte": {2.0: 0.9}})
    against = against_interpolation(table, "wikitext2_bits_per_byte")
    means = summary(table, "wikitext2_bits_per_byte")
    said = findings.frontier_findings(
        table,
        means,
        against.reindex(columns=["seeds", "beyond", "method", "setting", "low", "high", "difference"]),
        "wikitext2_bits_per_byte",
    )
    assert any(s.startswith("Negative result, no forgetting shown") for s in said)


def test_general_text_is_what_was_measured():
    assert frontier.general_measure(made()) == "wikitext2_bits_per_byte"
    without = made().rename(columns={"wikitext2_bits_per_byte": "base_samples_bits_per_byte"})
    assert frontier.general_measure(without) == "base_samples_bits_per_byte"


def test_general_text_comes_from_the_base_model_once(base, monkeypatch):
    first = general_text(base, 300, 0)
    assert sum(len(d.input_ids) for d in first) >= 300
    end = base.tokenizer.eos_token_id
    for document in first:  # a text that was cut did not end, so no EOS is learned or scored there
        assert document.input_ids[0] == end and end not in document.input_ids[1:-1]
        cut = len(document.input_ids) > frontier.SAMPLE_LENGTH
        assert (document.input_ids[-1] == end) != cut
        text = base.tokenizer.decode(document.input_ids, skip_special_tokens=True)
        assert document.target_bytes == len(text.encode())
    other = general_text(base, 300, 1)
    assert {tuple(d.input_ids) for d in first}.isdisjoint(tuple(d.input_ids) for d in other)

    def refuse(*_, **__):
        raise AssertionError("sampled again")

    monkeypatch.setattr(frontier, "generate", refuse)
    assert general_text(base, 300, 0) == first


def test_a_table_of_two_ways_is_measured_once(base, task, monkeypatch):
    ways = [VARIANTS[0], Variant("replay", "25 % general", "full", change=frontier.replayed)]
    table = frontier.table(base, task, ways, (0,))
    assert table["method"].tolist() == ["none", "full", *["interpolation"] * 3, "replay"]
    assert (table["base_samples_bits_per_byte"] > 0).all() and table["seed"].eq(0).all()
    full = table[table["method"] == "full"].iloc[0]
    p = profile.current().innovation
    assert full["learning_rate"] == 1e-4 and full["tokens"] > 0.5 * p.frontier_tokens
    ordered = table.set_index("setting").loc[["before", "alpha 0.25", "alpha 0.75", "lr 1e-4"], "bits_per_byte"]
    assert ordered.is_monotonic_decreasing  # on the way from before to after

    def refuse(*_, **__):
        raise AssertionError("again")

    monkeypatch.setattr(frontier, "measure", refuse)
    monkeypatch.setattr(frontier.train, "finetune", refuse)
    pd.testing.assert_frame_equal(frontier.table(base, task, ways, (0,)), table)


def test_without_muon_the_others_run(monkeypatch, capsys):
    monkeypatch.setattr(frontier, "no_muon", lambda: "optimizer='muon' needs torch 2.9")
    assert [v.method for v in frontier.possible()] == [v.method for v in VARIANTS if v.method != "Muon"]
    assert "Skipped: optimizer='muon' needs torch 2.9" in capsys.readouterr().out


def test_the_figure_marks_the_front_and_labels_every_point():
    table = summary(made([row("LoRA", "rank 4", s, 1.5, 1.6) for s in range(3)]), "wikitext2_bits_per_byte")
    figure = innovation_plots.front(table, "general")
    texts = {t.get_text() for t in figure.axes[0].texts}
    assert {"before", "full, lr 1e-4", "interpolation, alpha 0.5", "LoRA, rank 4"} <= texts
    points = [line for line in figure.axes[0].lines if line.get_marker() not in ("None", "", None)]
    filled = sum(line.get_markerfacecolor() != "white" for line in points)
    assert filled == table["front"].sum() and len(points) == len(table)
