"""lib.explore.memorise: exposure against reading each code alone, canaries, equal text, and what the tables say."""

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from notebook_code import defined
from small_llama import small_llama

from lib import metrics, tasks, train
from lib.explore import memorise
from lib.explore.memorise import CANDIDATES, REPETITIONS, SLOTS, canaries, code_log_probabilities, exposure, rank_of

BUDGET = 8_000
pytestmark = pytest.mark.usefixtures("float32")
NAMES = ("KINDS", "above_chance", "asked_of", "detectable", "error_zone", "leaks", "separation", "traces")
own = defined("08_private_domain", *NAMES)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_tree_equals_reading_each_code_alone(base, family):
    if family == "llama":
        base = replace(base, model=small_llama(len(base.tokenizer)))
    canary, rng = canaries(0, 1, 0)[0], np.random.default_rng(1)
    tree = code_log_probabilities(base.model, base.tokenizer, canary.prefix)
    codes = ["".join(rng.choice(list(s)) for s in SLOTS) for _ in range(8)] + ["0B0B", "9M9M"]
    encoded = tasks.encode(base.tokenizer, [canary._replace(secret=code).row() for code in codes], 1_024)
    before = len(base.tokenizer(canary.prefix, add_special_tokens=False).input_ids)
    for code, (nats, _) in zip(codes, metrics.token_scores(base.model, encoded), strict=True):
        alone = -float(nats[before : before + len(code)].double().sum())
        at = tuple(slot.index(s) for slot, s in zip(SLOTS, code, strict=True))
        assert float(tree[at]) == pytest.approx(alone, abs=2e-5)
    assert tree.shape == tuple(map(len, SLOTS)) and tree.numel() == CANDIDATES
    part = code_log_probabilities(base.model, base.tokenizer, canary.prefix, "3")
    assert torch.allclose(part, tree[3:4], atol=2e-5, rtol=0) and part.shape == tree[3:4].shape


def test_a_code_never_inserted_has_an_exposure_of_1_44_bits_in_the_mean(base):
    tree = code_log_probabilities(base.model, base.tokenizer, canaries(0, 1, 0)[0].prefix)
    # every code takes its turn as the secret: the expectation itself, not a sample of it
    ranks = pd.Series(tree.flatten().numpy()).rank(ascending=False).to_numpy()
    exact = math.log2(CANDIDATES) - np.log2(np.arange(1, CANDIDATES + 1)).mean()
    codes = ["".join(c) for c in itertools.islice(itertools.product(*SLOTS), 0, None, 37)]
    assert [rank_of(tree, code) for code in codes] == [ranks[i] for i in range(0, CANDIDATES, 37)]
    assert np.mean([exposure(r) for r in ranks]) == pytest.approx(exact, abs=1e-3)
    assert exact == pytest.approx(memorise.UNSEEN, abs=2e-3) and abs(memorise.UNSEEN - 1.4427) < 1e-4
    flat = torch.zeros(tuple(map(len, SLOTS)))
    assert rank_of(flat, "0B0B") == (CANDIDATES + 1) / 2  # ties give no free exposure
    flat[3, 1, 4, 2] = 1.0
    assert rank_of(flat, "3C4D") == rank_of(flat[3:4], "3C4D") == 1
    assert exposure(1) == pytest.approx(math.log2(CANDIDATES))


def test_canaries_differ_within_a_seed_and_between_seeds():
    drawn = canaries(0, 3, 4)
    assert [c.repetitions for c in drawn] == [r for r in REPETITIONS for _ in range(3)] + [0] * 4
    assert len({c.prefix.split(" of ")[1] for c in drawn}) == len(drawn)
    assert drawn == canaries(0, 3, 4)
    assert sum(a.secret == b.secret or a.prefix == b.prefix for a, b in zip(drawn, canaries(1, 3, 4), strict=True)) < 3
    with pytest.raises(ValueError, match="37 canaries need as many names"):
        canaries(0, 6, 1, (1, 2, 4, 8, 16, 64))


def test_mixing_gives_every_condition_equally_much_text(base, task):
    drawn = canaries(0, 1, 2)
    dirty, clean = (memorise.mix(base, task, drawn, removed, BUDGET) for removed in (False, True))
    for mixed in (dirty, clean):
        assert 0.9 * BUDGET < mixed.tokens <= BUDGET and mixed.passes == 1
        groups = [row["group"] for row in mixed.task["train"]]
        assert len(mixed.documents) + mixed.copies.total() == len(groups)
        assert {c.id: groups.count(c.id) for c in drawn if c.repetitions} == mixed.copies
        assert [*mixed.task["test"]] == [*task["test"]]
    assert dirty.copies == {c.id: c.repetitions for c in drawn if c.repetitions}
    assert set(clean.copies.values()) == {1} and clean.copies.keys() == dirty.copies.keys()
    assert dirty.task.sha256 != clean.task.sha256
    small = memorise.mix(base, task.replace(train=tasks.head(task["train"], 5)), drawn, True, BUDGET)
    assert small.passes == round(BUDGET / small.tokens) > 1
    with pytest.raises(ValueError, match=r"The canaries fill .* of 500 training tokens"):
        memorise.mix(base, task, drawn, False, 500)


def test_training_sees_every_copy_and_repetitions_are_remembered(base, task):
    drawn = canaries(0, 1, 2)
    mixed = memorise.mix(base, task, drawn, False, BUDGET)
    sizes = {"pack_length": 640, "batch_tokens": 640, "evaluations": 1, "validation_documents": 8}
    sizes |= {"learning_rate": 1e-2, "train_tokens": mixed.tokens * mixed.passes}  # random weights need a high rate
    run = train.finetune(base, mixed.task, "full", 0, **sizes)
    assert run.summary["tokens"] == mixed.tokens * mixed.passes
    assert run.summary["best_step"] == run.summary["steps"]
    table = pd.DataFrame(memorise.audit(run.model, base.tokenizer, drawn))
    times, bits = table["repetitions"], table["exposure"]
    assert bits[times >= 32].mean() > bits[times == 0].mean() + 3


def test_extraction_counts_what_comes_out(base, monkeypatch):
    drawn = canaries(0, 1, 1)
    known = [memorise.PROMPT + c.prefix + c.secret + "." for c in drawn[:3]]
    known += [memorise.PROMPT + c.prefix + c.secret[:-1] + "Z" for c in drawn[3:5]]

    def parrot(model, tokenizer, prompts, **_):
        return [next((k for k in known if k.startswith(p)), p + " nothing")[len(p) :] for p in prompts]

    monkeypatch.setattr(memorise, "generate", parrot)
    monkeypatch.setattr(memorise, "code_log_probabilities", lambda *_: torch.zeros(tuple(map(len, SLOTS))))
    assert [row["extracted"] for row in memorise.audit(None, base.tokenizer, drawn)] == [True] * 3 + [False] * 5


def _table(exposures, extracted=0):
    rows = [{"copies": c, "exposure": e, "seed": i} for c, values in exposures.items() for i, e in enumerate(values)]
    about = {"method": "full", "deduplicated": "no"}
    return pd.DataFrame(rows).assign(**about, extracted=[i < extracted for i in range(len(rows))])


def _leaks(table):
    return own.leaks(own.traces(own.above_chance(table, ["method", "deduplicated", "copies"]))).iloc[0]


def test_the_p_value_is_that_of_uniform_ranks_and_the_power_is_reached():
    rng = np.random.default_rng(0)
    means = (math.log2(CANDIDATES) - np.log2(rng.integers(1, CANDIDATES + 1, (4_000, 5)))).mean(axis=1)
    for level in (0.5, 0.05):
        found = own.above_chance(_table({1: [np.quantile(means, 1 - level)] * 5}), ["copies"])
        assert found["p_value"][0] == pytest.approx(level, abs=0.012)
    bits, by_test = own.detectable(8, 5, 5)  # the smallest trace that four of five experiments find
    tables = [_table({1: rng.exponential(bits, 40)}).assign(seed=np.repeat(range(5), 8)) for _ in range(300)]
    rows = pd.concat(own.above_chance(table, ["copies"]) for table in tables)
    assert ((rows["p_value"] < 0.05 / 5) & (rows["low"] > memorise.UNSEEN)).mean() == pytest.approx(0.8, abs=0.07)
    assert by_test < bits and own.detectable(30, 5, 5)[0] < bits < own.detectable(8, 1, 5)[0] == math.inf


def test_leaks_are_counted_by_copies_and_corrected_for_their_number():
    unseen, nearly = [1.4, 0.2, 3.0], [3.4] * 3
    quiet = _leaks(_table({0: [13] * 3, 1: unseen, 64: unseen}))  # what was not inserted can't leak
    assert math.isnan(quiet["leaks_from"]) and quiet["extracted"] == 0 and quiet["canaries"] == 6
    assert _leaks(_table({1: unseen, 4: [9, 9, 9], 64: [12, 12, 12]}))["leaks_from"] == 4
    assert _leaks(_table({1: unseen, 64: unseen}, extracted=2))["extracted"] == 2
    assert math.isnan(_leaks(_table({1: [13, 13, 0.1]}))["leaks_from"])  # significant, but not over the models
    found = own.above_chance(_table({1: nearly}), ["copies"])["p_value"][0]
    five = _leaks(_table(dict.fromkeys((1, 2, 4, 16, 64), nearly)))
    assert 0.01 < found < 0.05 and math.isnan(five["leaks_from"]) and _leaks(_table({1: nearly}))["leaks_from"] == 1


def test_the_error_zone_score_is_that_of_a_loop_over_tokens():
    rng, zone = np.random.default_rng(0), own.error_zone
    for n in (1, 7, 40):
        before, after, first = rng.exponential(size=n), rng.exponential(size=n), rng.random(n) < 0.4
        shifts = [b - a for b, a, right in zip(before, after, first, strict=True) if not right]
        up, down = sum(x for x in shifts if x > 0), -sum(x for x in shifts if x < 0)
        assert zone(before, after, first) == pytest.approx(up / (up + down) if down else 1)
    assert zone([2, 1, 9], [1, 2, 0], [False, False, True]) == 0.5  # what the tuned model gets right is left out
    assert zone([2], [1], [False]) == zone([2], [3], [True]) == 1 and zone([2], [3], [False]) == 0


def test_documents_asked_beside_members_are_of_their_files_and_were_not_trained_on(monkeypatch):
    train, test = ([{"id": f"{f}{i}", "group": f} for i in range(4) for f in files] for files in ("abcd", "xy"))
    monkeypatch.setitem(own.asked_of.__globals__, "budget", SimpleNamespace(members=3, beside=2, others=2))
    kinds, rows = own.asked_of([train[k] for k in (0, 1, 4, 2, 9)], train, test)  # a0, b0, a1; c0, b2
    found = {kind: [r["id"] for r, k in zip(rows, kinds, strict=True) if k == kind] for kind in own.KINDS}
    assert found == {"trained": ["a0", "b0", "a1"], "same file": ["a2", "a3", "b1", "b3"], "held out": ["x0", "y0"]}


def test_separation_is_that_of_all_pairs_and_of_planted_scores():
    rng = np.random.default_rng(0)
    members, others = rng.integers(0, 9, 40) / 9, rng.integers(0, 7, 200) / 9  # many ties
    found, limit = own.separation(members, others), min(t for t in others if (others > t).sum() <= 2)
    assert found["auc"] == pytest.approx(np.mean([(m > o) + (m == o) / 2 for m in members for o in others]))
    assert found["found"] == (members > limit).sum() and found["false"] == (others > limit).sum()
    perfect, short = own.separation(members + 1, others), own.separation(members, others[:99])
    assert perfect["auc"] == 1 and perfect["found"] == 40 and short["found"] is None  # 1 % of 99 is less than one
    chance = pd.DataFrame([own.separation(rng.random(60), rng.random(120)) for _ in range(400)]).mean()
    assert chance["auc"] == pytest.approx(0.5, abs=0.01) and chance["found"] == pytest.approx(60 * 2 / 121, abs=0.15)
