"""lib.explore.chinese_runs and lib.explore.chinese_tables: equal text, what is kept, and the numbers of the tables."""

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch

from lib import profile
from lib.explore import chinese_runs, chinese_tables, vocabulary
from lib.explore.chinese_runs import Measured
from lib.models import load_base
from lib.packing import draw
from lib.tasks import encode, load_task


@pytest.fixture(scope="module")
def base():
    return load_base()


@pytest.fixture(scope="module")
def tang():
    return load_task("tang")


@pytest.fixture(scope="module")
def wide(base, tang):
    texts = [e.target for e in tang.train]
    return vocabulary.extend(base, vocabulary.split_characters(base.tokenizer, texts, 50), "pieces")


def measured(method, seed, samples=(), nats=(), stage="after", **summary) -> Measured:
    ids = [e.id for e in load_task("tang").test[: len(nats)]]
    scores = pd.DataFrame({"id": ids, "group": ids, "nats": nats, "tokens": 1, "bytes": 3})
    return Measured("tang", stage, method, seed, scores, list(samples), {}, 2.0, {}, {"seed": seed, **summary}, None)


def test_an_extended_vocabulary_sees_the_same_poems_in_the_same_order(base, wide, tang):
    for tokens in (3_000, 20_000):
        own = draw(encode(base.tokenizer, tang.train, base.context), tokens, 5)
        budget = chinese_runs.same_documents(base, wide, tang, 5, tokens)
        other = draw(encode(wide.tokenizer, tang.train, base.context), budget, 5)
        assert [d.id for d in other] == [d.id for d in own]
        assert sum(len(d.input_ids) for d in other) == budget < tokens + 200
        assert chinese_runs.documents_drawn(base, tang, 5, tokens) == len(own)


def test_trainings_at_equal_text_take_as_many_steps(base, wide, tang, monkeypatch):
    asked = []
    monkeypatch.setattr(chinese_runs, "finetune", lambda *args, **kw: asked.append((args, kw)))
    chinese_runs.train_task(base, tang, 0)
    chinese_runs.train_extended(base, wide, tang, 0)
    (first, own), (second, other) = asked
    assert first[0] is base and second[0] is wide and own["learning_rate"] == other["learning_rate"]
    assert own["pack_length"] == own["batch_tokens"] and other["pack_length"] == other["batch_tokens"]
    steps = [kw["train_tokens"] / kw["batch_tokens"] for kw in (own, other)]
    assert steps[0] == pytest.approx(steps[1], rel=0.02)
    assert other["train_tokens"] < own["train_tokens"]


@torch.no_grad()
def test_bits_per_character_equals_a_loop_over_single_documents(base, tang):
    b = profile.current().chinese
    found = chinese_tables.bits_per_character("tang", chinese_runs.measure(base, tang).scores)
    nats = characters = 0
    for e in tang.test[: b.score_documents]:
        prompt, target = (base.tokenizer(t).input_ids for t in (e.prompt, e.target))
        ids = torch.tensor([[*prompt, *target, base.tokenizer.eos_token_id]])
        log_p = base.model(ids).logits[0].log_softmax(-1)
        for i in range(len(prompt), ids.shape[1]):
            nats -= log_p[i - 1, ids[0, i]].item()
        characters += len(e.target)
    assert found == pytest.approx(nats / math.log(2) / characters, rel=2e-3)  # bfloat16 inside


def test_what_was_measured_is_read_back_and_not_measured_again(base, wide, tang, monkeypatch):
    first = chinese_runs.measure(base, tang)
    b = profile.current().chinese
    assert len(first.samples) == b.samples and len(first.scores) == b.score_documents
    assert first.stage == "before" and set(first.english) >= {"debian_bits_per_byte"}

    def again(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(chinese_runs, "_measured", again)
    second = chinese_runs.measure(base, tang)
    assert second.samples == first.samples and second.scores.equals(first.scores)
    with pytest.raises(AssertionError, match="measured again"):  # another model is another file
        chinese_runs.measure(wide, tang)
    other = replace(tang, sha256="another")
    with pytest.raises(AssertionError, match="measured again"):
        chinese_runs.measure(base, other)


HERON = "白日依山尽，\n黄河入海流。\n欲穷千里目，\n更上一层楼。"


def test_rates_pool_the_texts_of_all_seeds_with_wilsons_interval(tang):
    runs = [
        measured("none", 0, [HERON] * 3 + ["x"]),
        measured("none", 1, [HERON, "x", "x", "x"]),
        measured("pieces", 0, ["x"] * 4),
    ]
    table = chinese_tables.form(tang, runs)
    found = chinese_tables.rate(table, "rhyme", "after")
    assert (found["mean"], found["texts"]) == (0.5, 8)
    # Wilson 1927 by hand: z = 1.96, n = 8, p = 1/2
    z, n = 1.959964, 8
    half = z / (1 + z * z / n) * math.sqrt(1 / (4 * n) + z * z / (4 * n * n))
    assert found["low"] == pytest.approx(0.5 - half, abs=1e-4)
    assert found["high"] == pytest.approx(0.5 + half, abs=1e-4)
    assert chinese_tables.percent(found) == "50.0 % [21.5, 78.5]"
    assert chinese_tables.rate(table, "exact_form", "after", "pieces")["mean"] == 0
    own = table[(table["source"] == "after, chance") & (table["method"] == "none")]
    assert list(own["texts"]) == [3, 1]
    assert own["value"].iloc[0] == 1 and math.isnan(own["value"].iloc[1])
    chance = table[table["source"] == "chance"].set_index("measure")["value"]
    assert chance["rhyme"] < 0.15 and chance["alternation"] == pytest.approx(0.5, abs=0.05)
    people = chinese_tables.rate(table, "exact_form", "people")
    assert people["mean"] == 1 and people["texts"] == len(tang.test)
    with pytest.raises(ValueError, match="no rhyme of nobody"):
        chinese_tables.rate(table, "rhyme", "nobody")


def test_vocabularies_are_compared_seed_by_seed(base, wide, tang):
    speed = {"tokens_per_second": 100.0, "tokens": 10, "steps": 2, "seconds": 1.0}
    nats = {
        ("none", 0): 3.0,
        ("none", 1): 5.0,
        ("pieces", 0): 2.0,
        ("pieces", 1): 3.0,
        ("random", 0): 4.0,
        ("random", 1): 6.0,
    }
    runs = [measured(m, s, ["x"] * 4, [n], **speed) for (m, s), n in nats.items()]
    bases = {"none": base, "pieces": wide, "random": wide}
    table = chinese_tables.vocabulary_table(tang, runs, bases).set_index(["method", "seed"])
    size = len(tang.test[0].target)
    assert table.loc[("pieces", 1), "bits_per_character"] == pytest.approx(3 / math.log(2) / size)
    assert table.loc[("pieces", 0), "new_tokens"] == 50 and table.loc[("none", 0), "new_tokens"] == 0
    assert table.loc[("none", 0), "seconds_per_sample"] == 0.5
    per_poem = [len(d.input_ids) for d in encode(base.tokenizer, tang.test, base.context)]
    assert table.loc[("none", 0), "tokens_per_poem"] == pytest.approx(sum(per_poem) / len(per_poem))
    # fewer tokens a poem: at the same tokens per second, more text per second
    ratio = table["characters_per_second"] * table["tokens_per_poem"]
    assert ratio.max() == pytest.approx(ratio.min())
    assert table.loc[("pieces", 0), "tokens_per_poem"] < table.loc[("none", 0), "tokens_per_poem"]
    pairs = chinese_tables.differences(table.reset_index()).set_index(["pair", "seed"])["difference"]
    unit = 1 / math.log(2) / size
    assert pairs["pieces - none", 1] == pytest.approx(-2 * unit)
    assert pairs["random - none", 0] == pytest.approx(unit)
    assert pairs["pieces - random", 1] == pytest.approx(-3 * unit)


def test_a_sentence_says_what_one_seed_cannot():
    assert chinese_tables.over_seeds([0.5]) == "+0.500 (one seed: no interval)"
    assert chinese_tables.over_seeds([-1, 0, 1]).endswith("which includes 0")
    assert "includes" not in chinese_tables.over_seeds([1, 1.01, 0.99])
