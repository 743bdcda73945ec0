"""lib.explore.convert, lib.explore.recurrent: matching, order of layers, fine-tuning, what is kept, and the cost of decoding."""

import copy
import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from lib.explore import convert, findings
from lib.explore.convert import Conversion, Experiment, bits_per_byte, match, matching_errors, rows, tune
from lib.explore.hybrid import FORMS, converted, new_maps
from lib.explore.recurrent import DECODED, decoding, decoding_table, with_decoding
from lib.models import load_base
from lib.tasks import load_task

SIZES = {"length": 48, "matching_tokens": 400, "tuning_tokens": 200, "damage_tokens": 100, "eval_tokens": 100}


@pytest.fixture(scope="module")
def base():
    loaded = load_base()
    loaded = replace(loaded, model=copy.deepcopy(loaded.model), name="sharpened")
    with torch.no_grad():  # initial weights give attention close to a plain mean
        for block in loaded.model.transformer.h:
            block.attn.c_attn.weight.mul_(12)
    return loaded


@pytest.fixture(scope="module")
def task():
    return load_task("debian")


@pytest.fixture(scope="module")
def experiment(base, task):
    return Experiment(base, task, Conversion("linear+window", 0, **SIZES))


def test_rows_hold_whole_documents_and_each_token_is_a_target_once(base, task):
    text = rows(base, task, "validation", 150, 48)
    stream = torch.cat([r[0, :-1] for r in text.ids] + [text.ids[-1][0, -1:]])
    end = base.tokenizer.eos_token_id
    assert stream[0] == end and stream[-1] == end and len(stream) > 150
    documents = base.tokenizer.decode(stream[1:-1]).split(base.tokenizer.eos_token)
    wanted = [e.prompt + e.target for e in task.validation[: len(documents)]]
    assert documents == wanted
    assert text.n_bytes == sum(len(t.encode()) for t in wanted)
    targets = torch.cat([r[0, 1:] for r in text.ids])
    assert torch.equal(targets, stream[1:])
    with pytest.raises(ValueError, match=r"validation split holds .* not 100,000,000"):
        rows(base, task, "validation", 10**8, 48)
    other = rows(base, task, "train", 150, 48, seed=1)
    assert not torch.equal(other.ids[0], rows(base, task, "train", 150, 48, seed=2).ids[0])


def test_bits_per_byte_is_the_sum_over_all_rows(base, task):
    text = rows(base, task, "validation", 150, 48)
    with torch.no_grad():
        nats = sum(float(F.cross_entropy(base.model(r[:, :-1]).logits[0], r[0, 1:], reduction="sum")) for r in text.ids)
    wanted = nats / math.log(2) / text.n_bytes
    assert bits_per_byte(base.model, text) == pytest.approx(wanted, rel=5e-3)  # autocast


@pytest.mark.parametrize("form", ["linear", "linear+window"])
def test_matching_lowers_every_layers_error_and_moves_nothing_else(base, task, form):
    before = copy.deepcopy(base.model.state_dict())
    held_out = rows(base, task, "validation", 100, 48)
    text = rows(base, task, "train", 2_000, 48, 0)
    maps = match(base.model, text, form, 1e-2, "matching")
    start = matching_errors(base.model, new_maps(base.model), form, held_out)
    end = matching_errors(base.model, maps, form, held_out)
    assert all(b < 0.95 * a for a, b in zip(start, end, strict=True)), (start, end)
    after = base.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(v, after[k]) for k, v in before.items())
    assert all(p.requires_grad for p in base.model.parameters())


def test_a_matching_error_is_the_relative_square_of_the_outputs(base, task, monkeypatch):
    text = rows(base, task, "validation", 40, 48)
    monkeypatch.setitem(FORMS, "exact", {"window": 10_000, "far": True})  # a window over everything
    exact = matching_errors(base.model, new_maps(base.model), "exact", text)
    assert max(exact) < 1e-6
    from lib.explore import hybrid

    monkeypatch.setattr(hybrid, "hybrid", lambda q, k, v, *_, **__: torch.zeros_like(v))
    nothing = matching_errors(base.model, new_maps(base.model), "linear", text)
    assert nothing == pytest.approx([1.0] * len(nothing))


def test_tuning_learns_in_a_copy(base, task):
    before = copy.deepcopy(base.model.state_dict())
    maps, text = new_maps(base.model), rows(base, task, "train", 1_500, 48, 0)
    model, moved = tune(base.model, maps, "linear+window", text, 3e-3, "tuning")
    held_out = rows(base, task, "validation", 100, 48)
    with converted(base.model, maps, "linear+window"):
        start = bits_per_byte(base.model, held_out)
    with converted(model, moved, "linear+window"):
        assert bits_per_byte(model, held_out) < start - 0.05
    assert all(torch.equal(v, base.model.state_dict()[k]) for k, v in before.items())
    assert not torch.equal(moved[0].query, maps[0].query)  # the feature maps move as well
    assert torch.equal(maps[0].query, new_maps(base.model)[0].query)


def test_layers_go_by_their_damage_and_the_control_takes_the_same(experiment, base, task):
    fake = pd.DataFrame({"layer": [0, 1, 2, 3], "damage": [0.3, 0.1, 0.4, 0.2]})
    owner = SimpleNamespace(damage=lambda: fake, settings=experiment.settings)
    control = Experiment(base, task, Conversion("window", 0, **SIZES), ranking=owner)
    control.layers = 4
    assert control.chosen(0.5) == [1, 3] and control.chosen(0.75) == [0, 1, 3]
    assert control.chosen(0.5, "most_damage") == [0, 2]
    assert control.chosen(0.0) == [] and control.chosen(1.0) == [0, 1, 2, 3]
    alone = Experiment(base, task, Conversion("window", 0, **SIZES))
    assert alone.path != control.path


def test_damage_is_what_one_layer_costs(experiment, base, task):
    damage = experiment.damage()
    text = rows(base, task, "validation", SIZES["damage_tokens"], SIZES["length"])
    maps = experiment.maps()
    with converted(base.model, {1: maps[1]}, "linear+window"):
        wanted = bits_per_byte(base.model, text) - bits_per_byte_of_softmax(base, text)
    assert damage.set_index("layer").loc[1, "damage"] == pytest.approx(wanted, abs=1e-6)
    assert list(damage["layer"]) == [0, 1]
    assert (damage["matching_error"] < damage["error_unmatched"]).all()


def bits_per_byte_of_softmax(base, text):
    with converted(base.model, {}, "linear+window"):  # float32, where autocast's bfloat16 rounds
        return bits_per_byte(base.model, text)


def test_rows_of_the_results_and_that_they_are_kept(experiment, base, task, monkeypatch):
    zero = experiment.row(0.0, "converted")
    text = rows(base, task, "test", SIZES["eval_tokens"], SIZES["length"])
    wanted = bits_per_byte_of_softmax(base, text)
    assert zero["bits_per_byte"] == pytest.approx(wanted, abs=1e-6)
    assert wanted == pytest.approx(bits_per_byte(base.model, text), rel=1e-3)
    whole = experiment.row(1.0, "fine_tuned")
    assert whole["layers"] == 2 and whole["tuning_tokens"] == 200 and zero["layers"] == 0
    unmatched = experiment.row(1.0, "converted", matched=False)
    assert unmatched["matching_tokens"] == 0
    assert unmatched["bits_per_byte"] != experiment.row(1.0, "converted")["bits_per_byte"]

    def refuse(*_, **__):
        raise AssertionError("computed again")

    for name in ("match", "tune", "bits_per_byte"):
        monkeypatch.setattr(convert, name, refuse)
    again = Experiment(base, task, experiment.settings)
    assert again.row(1.0, "fine_tuned") == whole and len(again.damage()) == 2
    with pytest.raises(AssertionError, match="again"):
        Experiment(base, task, Conversion("linear+window", 1, **SIZES)).row(0.0, "fine_tuned")
    (again.path / "damage.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"damage.json is damaged .* delete it, run again"):
        again.damage()
    (again.path / "damage.json").unlink()


def test_the_plan_has_both_controls():
    plans = {f: Experiment.plan(SimpleNamespace(settings=SimpleNamespace(form=f))) for f in FORMS}
    assert {"share": 0.0, "stage": "fine_tuned"} in plans["linear+window"]
    assert {"share": 1.0, "stage": "fine_tuned", "matched": False} in plans["linear+window"]
    assert {"share": 1.0, "stage": "fine_tuned"} in plans["window"]
    for form, plan in plans.items():  # share 0 is one model, measured once
        assert ({"share": 0.0, "stage": "converted"} in plan) == (form == "linear+window")
    assert not any("matched" in step for step in plans["window"])  # it has nothing to match


def test_the_state_has_the_size_of_its_formula(base):
    heads, width, layers = base.model.config.n_head, 64 // base.model.config.n_head, 2
    cache = decoding(base, "linear", 0.0, (40, 80), 1)
    one = layers * heads * 2 * width * 4 / 1_000
    assert cache["state_kilobytes"].tolist() == pytest.approx([one * 41 + 2 * one, one * 81 + 2 * one])
    linear = decoding(base, "linear", 1.0, (40, 80), 1)
    state = layers * heads * 2 * width * (width + 1) * 4 / 1_000
    assert linear["state_kilobytes"].tolist() == pytest.approx([state, state])
    both = decoding(base, "linear+window", 1.0, (40, 80), 1)["state_kilobytes"]
    assert both.tolist() == pytest.approx([state + 32 * one] * 2)
    half = decoding(base, "linear", 0.5, (40,), 1)["state_kilobytes"].iloc[0]
    assert half == pytest.approx(cache["state_kilobytes"].iloc[0] / 2 + state / 2)
    assert (cache["milliseconds"] > 0).all() and (cache["form"] == "softmax").all()


def conversion_table(decoded, seeds):
    table = []
    for seed, form, stage, share, matched, order in itertools.product(
        seeds, FORMS, ("converted", "fine_tuned"), (0.0, 0.5, 1.0), (True, False), ("least_damage", "most_damage")
    ):
        value = 1 + share + 0.01 * seed + (not matched) * 0.5 + (order == "most_damage") * 0.25
        value += (form == "window") * seed * share
        table.append(
            {
                "form": form,
                "seed": seed,
                "stage": stage,
                "share": share,
                "matched": matched,
                "order": order,
                "bits_per_byte": value,
            }
        )
    return with_decoding(pd.DataFrame(table), decoded)


@pytest.fixture(scope="module")
def decoded(base):
    return decoding_table(base, (16, 32))


DAMAGE = pd.DataFrame(
    {
        "form": "linear",
        "layer": [0, 1] * 3,
        "seed": [0, 0, 1, 1, 2, 2],
        "damage": [0.1, 0.3] * 3,
        "matching_error": 0.1,
        "error_unmatched": 0.5,
    }
)


def test_sentences_follow_the_numbers(decoded):
    assert len(decoded) == 2 * len(DECODED)
    table = conversion_table(decoded, range(3))
    assert table.loc[table["share"] == 0, "milliseconds"].notna().all()
    said = "\n".join(findings.conversion_findings(table, DAMAGE, decoded))
    assert "from +0.1000 (layer 0) to +0.3000 bits per byte (layer 1)" in said
    assert "the costliest 1 of 2 layers make 75% of what all cost" in said
    assert "linear+window, 50% of the layers" in said and "+0.5000 [+0.5000, +0.5000] bits per byte, shown" in said
    assert "with matching against without it: -0.5000" in said
    assert "the window alone: -1.0000" in said and "not shown" in said
    assert "harmful ones first: -0.2500" in said
    assert "Negative result, no gain shown. All layers, fine-tuned, with the linear part against" in said
    assert "Negative result, no gain shown. All layers, fine-tuned, with matching" not in said
    assert said.startswith("Finding: no share tried (50%, 100%) is converted at a cost of less")
    assert "over 3 seeds; mean costs by share 50%: +49.5%, 100%: +99.0%; all" in said.split("\n")[0]


def test_the_headline_takes_the_largest_share_whose_cost_is_small(decoded):
    table = conversion_table(decoded, range(3))
    table.loc[table["share"] == 0.5, "bits_per_byte"] = 1.04 + 0.01 * table["seed"]
    said = findings.conversion_findings(table, DAMAGE, decoded)[0]
    assert said.startswith("Finding: 50% is the largest share of layers whose conversion costs")


def test_one_seed_gives_no_interval_and_no_nan(decoded):
    table = conversion_table(decoded, (0,))
    said = findings.conversion_findings(table, DAMAGE[:2], decoded)
    assert "by the mean of 1 seed;" in said[0]
    assert "-0.5000 bits per byte, one seed, no interval." in "\n".join(said)
    assert not any("nan" in sentence for sentence in said)
    free = findings.conversion_findings(table, DAMAGE.assign(damage=-0.1), decoded)
    assert "; none costs anything. Matching" in free[1]
