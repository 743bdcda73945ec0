import itertools
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from lib.explore.collect import deduplicate
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lib import profile
from lib.explore import memorise, private
from lib.explore.encodings import GPT2_MERGES
from lib.explore.memorise import CANDIDATES, REPETITIONS, SLOTS, canaries, code_log_probabilities, exposure
from lib.metrics import token_scores
from lib.models import load_base
from lib.tasks import Example, encode, load_task


@pytest.fixture(scope="module")
def base():
    return load_base()


@pytest.fixture(scope="module")
def task():
    whole = load_task("debian")
    return replace(whole, train=whole.train[:200], validation=whole.validation[:8])


@pytest.fixture(scope="module")
def tree(base):
    with pytest.MonkeyPatch.context() as patch:  # bfloat16 would differ by rounding
        patch.setattr(profile, "autocast_dtype", lambda: torch.float32)
        return _tree(base)


def _tree(base):
    return code_log_probabilities(base.model, base.tokenizer, canaries(0, 1, 0)[0].prefix)


def test_the_tree_equals_reading_each_code_alone(base, tree, monkeypatch):
    monkeypatch.setattr(profile, "autocast_dtype", lambda: torch.float32)
    _compare(base, tree)


def test_the_tree_is_right_with_rotary_positions_and_grouped_heads(base, monkeypatch):
    monkeypatch.setattr(profile, "autocast_dtype", lambda: torch.float32)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(base.tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    other = replace(base, model=LlamaForCausalLM(config).eval())
    _compare(other, _tree(other))


def _compare(base, tree):
    canary = canaries(0, 1, 0)[0]
    rng = np.random.default_rng(1)
    codes = ["".join(rng.choice(list(s)) for s in SLOTS) for _ in range(8)]
    codes += ["0B0B", "9M9M"]
    examples = [replace(canary, secret=code).example() for code in codes]
    encoded = encode(base.tokenizer, examples, 1_024)
    before_code = len(memorise._ids(base.tokenizer, canary.prefix))
    for code, (nats, _) in zip(codes, token_scores(base.model, encoded), strict=True):
        alone = -float(nats[before_code : before_code + len(code)].double().sum())
        at = tuple(slot.index(s) for slot, s in zip(SLOTS, code, strict=True))
        assert float(tree[at]) == pytest.approx(alone, abs=2e-5)
    assert tree.shape == tuple(map(len, SLOTS)) and tree.numel() == CANDIDATES


def test_a_code_never_inserted_has_an_exposure_of_1_44_bits_in_the_mean(tree):
    # every code takes its turn as the secret: the expectation itself, not a sample of it
    ranks = pd.Series(tree.flatten().numpy()).rank(ascending=False).to_numpy()
    exact = math.log2(CANDIDATES) - np.log2(np.arange(1, CANDIDATES + 1)).mean()
    codes = ["".join(c) for c in itertools.islice(itertools.product(*SLOTS), 0, None, 37)]
    sample = [exposure(tree, code) for code in codes]
    at = range(0, CANDIDATES, 37)
    assert [r for r, _ in sample] == [ranks[i] for i in at]
    assert (math.log2(CANDIDATES) - np.log2(ranks)).mean() == pytest.approx(exact, abs=1e-3)
    assert exact == pytest.approx(memorise.UNSEEN, abs=2e-3)
    assert abs(memorise.UNSEEN - 1.4427) < 1e-4


def test_exposure_at_the_ends_and_with_ties():
    flat = torch.zeros(tuple(map(len, SLOTS)))
    rank, bits = exposure(flat, "0B0B")
    assert rank == (CANDIDATES + 1) / 2 and bits == pytest.approx(1, abs=1e-3)  # no free exposure
    flat[3, 1, 4, 2] = 1.0
    assert exposure(flat, "3C4D") == (1, pytest.approx(math.log2(CANDIDATES)))
    flat[3, 1, 4, 2] = -1.0
    assert exposure(flat, "3C4D") == (CANDIDATES, pytest.approx(0))


def test_a_tokenizer_that_merges_the_code_is_refused(base):
    class Merging:
        name_or_path = "merging"

        def __call__(self, text, **_):
            ids = base.tokenizer(text, add_special_tokens=False).input_ids
            return type("", (), {"input_ids": [*ids[:-2], ids[-2] * 1000 + ids[-1]]})()

    with pytest.raises(ValueError, match=r"merging does not make the code .* one token a symbol"):
        code_log_probabilities(base.model, Merging(), canaries(0, 1, 0)[0].prefix)


def test_canaries_differ_within_a_seed_and_between_seeds():
    drawn = canaries(0, 3, 4)
    assert [c.repetitions for c in drawn] == [r for r in REPETITIONS for _ in range(3)] + [0] * 4
    assert len({c.prefix.split(" of ")[1] for c in drawn}) == len(drawn)
    again, other = canaries(0, 3, 4), canaries(1, 3, 4)
    assert drawn == again
    assert sum(a.secret == b.secret for a, b in zip(drawn, other, strict=True)) < 3
    assert sum(a.prefix == b.prefix for a, b in zip(drawn, other, strict=True)) < 3
    with pytest.raises(ValueError, match="43 canaries need as many names"):
        canaries(0, 6, 1)


def test_secrets_are_uniform_over_the_space():
    # what the p-value rests on; 0.1 % of fair draws fail this by chance, and the draw is fixed
    codes = [c.secret for seed in range(120) for c in canaries(seed, 3, 4)]
    for slot, at in zip(SLOTS, range(4), strict=True):
        counts = np.array([sum(c[at] == s for c in codes) for s in slot])
        expected = len(codes) / len(slot)
        assert ((counts - expected) ** 2 / expected).sum() < 27.9


def test_deduplication_leaves_one_copy_of_each_canary_and_no_canary_for_another():
    for seed in range(6):
        drawn = canaries(seed, 3, 4)
        repeated = [c.example(i) for c in drawn for i in range(c.repetitions)]
        kept = deduplicate(repeated)
        assert len(repeated) == 3 * sum(REPETITIONS)
        assert sorted(e.group for e in kept) == sorted(c.id for c in drawn if c.repetitions)


def test_mixing_gives_every_condition_equally_much_text(base, task):
    dirty = private.mix(base, task, private.Condition("full", False, 0))
    clean = private.mix(base, task, private.Condition("full", True, 0))
    budget = profile.current().private.train_tokens
    for mixed in (dirty, clean):
        assert 0.9 * budget < mixed.tokens <= budget and mixed.passes == 1
        counted = [e.group for e in mixed.task.train]
        assert len(mixed.documents) + sum(mixed.copies.values()) == len(counted)
        assert {c.id: counted.count(c.id) for c in mixed.canaries if c.repetitions} == mixed.copies
    assert dirty.copies == {c.id: c.repetitions for c in dirty.canaries if c.repetitions}
    assert set(clean.copies.values()) == {1} and clean.copies.keys() == dirty.copies.keys()
    assert dirty.task.sha256 != clean.task.sha256
    assert dirty.task.test is task.test


def test_little_text_is_passed_over_again_and_canaries_must_fit(base, task, monkeypatch):
    small = replace(task, train=task.train[:5])
    mixed = private.mix(base, small, private.Condition("full", True, 0))
    budget = profile.current().private.train_tokens
    assert mixed.passes == round(budget / mixed.tokens) > 1
    current = profile.current()
    tight = replace(current, private=replace(current.private, train_tokens=500))
    monkeypatch.setattr(private.profile, "current", lambda: tight)
    with pytest.raises(ValueError, match=r"The canaries fill .* of 500 training tokens"):
        private.mix(base, task, private.Condition("full", False, 0))


def test_training_sees_every_copy_and_repetitions_are_remembered(base, task):
    condition = private.Condition("full", False, 0)
    mixed = private.mix(base, task, condition)
    # a random model learns no digits at a rate meant for a pretrained one
    run = private.train_on(base, mixed, condition, learning_rate=1e-2)
    assert run.summary["tokens"] == mixed.tokens * mixed.passes
    assert run.summary["best_step"] == run.summary["steps"]
    found = private.measure(base, task, mixed, run, condition)
    table = private.memorisation([found])
    often = table.loc[table["repetitions"] >= 32, "exposure"].mean()
    never = table.loc[table["repetitions"] == 0, "exposure"].mean()
    assert often > never + 3
    again = private.measure(base, task, mixed, run, condition)
    assert private.memorisation([again]).equals(table)
    assert (run.path / next(p.name for p in run.path.glob("audited-*.json"))).exists()


class Parrot:
    """Stands for lib.generate.generate: knows some texts by heart."""

    def __init__(self, known):
        self.known = known

    def __call__(self, model, tokenizer, prompts, max_new_tokens, **_):
        texts = []
        for p in prompts:
            whole = next((k for k in self.known if k.startswith(p)), p + " nothing")
            ids = tokenizer(whole[len(p) :], add_special_tokens=False).input_ids
            texts.append(tokenizer.decode(ids[:max_new_tokens]))
        return texts


def test_extraction_and_continuation_count_what_comes_out(base, monkeypatch):
    drawn = canaries(0, 1, 1)
    known = [memorise.PROMPT + c.prefix + c.secret + "." for c in drawn[:3]]
    known += [memorise.PROMPT + c.prefix + c.secret[:-1] + "Z" for c in drawn[3:5]]
    monkeypatch.setattr(memorise, "generate", Parrot(known))
    assert memorise.extracted(None, base.tokenizer, drawn) == [True] * 3 + [False] * 5
    texts = [f"number {i} of the words that follow each other here " * 3 for i in range(4)]
    examples = [Example(str(i), "Title\n", t, (t,), str(i)) for i, t in enumerate([*texts, "short"])]
    monkeypatch.setattr(memorise, "generate", Parrot(["Title\n" + t for t in texts[:2]]))
    assert memorise.verbatim(None, base.tokenizer, examples) == {"documents": 4, "verbatim": 2, "tokens": 10}


def _table(exposures, extracted=0, stage="after"):
    rows = [
        {
            "stage": stage,
            "method": "full",
            "deduplicated": "no",
            "repetitions": r,
            "copies": r,
            "exposure": e,
            "extracted": i < extracted,
        }
        for i, (r, e) in enumerate((r, e) for r, values in exposures.items() for e in values)
    ]
    return pd.DataFrame(rows)


def test_the_p_value_is_that_of_uniform_ranks():
    rng = np.random.default_rng(0)
    ranks = rng.integers(1, CANDIDATES + 1, (4_000, 5))
    sums = (math.log2(CANDIDATES) - np.log2(ranks)).mean(axis=1)
    for level in (0.5, 0.05):
        reached = np.quantile(sums, 1 - level)
        found = memorise.evidence(_table({1: [reached] * 5}), ["repetitions"])
        assert found["p_value"][0] == pytest.approx(level, abs=0.012)
    assert found["exposure"][0] == pytest.approx(reached)


def test_advice_follows_from_the_table():
    unseen = [1.4, 0.2, 3.0]
    quiet = memorise.recommendation(_table({1: unseen, 64: unseen})).iloc[0]
    assert math.isnan(quiet["leaks_from"]) and quiet["advice"].startswith("Nothing found")
    traced = memorise.recommendation(_table({1: unseen, 8: [9, 9, 9], 64: [12, 12, 12]})).iloc[0]
    assert traced["leaks_from"] == 8 and "8 copies of a secret in the text leave a trace" in traced["advice"]
    told = memorise.recommendation(_table({1: unseen, 64: unseen}, extracted=2)).iloc[0]
    assert "2 of 6 secrets come out word for word" in told["advice"]
    once = _table({1: unseen, 64: [9, 9, 9]}).assign(copies=1, deduplicated="yes")
    assert memorise.recommendation(once).iloc[0]["leaks_from"] == 1  # copies count, not insertions
    before = _table({64: [13, 13]}, extracted=2, stage="before")
    both = memorise.recommendation(pd.concat([before, _table({1: unseen, 64: unseen})]))
    assert both.iloc[0]["extracted"] == 0


def test_rising_is_a_rank_correlation_without_the_controls():
    up = memorise.rises(_table({0: [13], 1: [1, 2], 2: [3, 2.5], 4: [5, 6], 8: [8, 9]}))
    assert up[0] > 0.9 and up[1] < 0.01
    assert memorise.rises(_table({1: [9, 8], 2: [5, 6], 4: [3, 2]}))[1] > 0.9
    assert memorise.rises(_table({1: [13], 2: [13]}))[1] == 1


def test_the_sentences_follow_from_the_tables():
    before = {"stage": "before", "method": "none", "deduplicated": "none"}
    after = {"stage": "after", "method": "full", "deduplicated": "no"}
    scores = [{**before, "bits_per_byte": 1.2}] + [{**after, "bits_per_byte": v} for v in (1.0, 1.01, 1.02)]
    unseen = _table({0: [1.4, 0.2, 3.0], 64: [1, 2, 0.5]})
    often = _table({0: [1.4, 0.2, 3.0], 1: [1, 2], 8: [5, 6], 64: [13, 12.9, 12]}, extracted=7)
    shares = [
        {**who, "split": split, "documents": 10, "verbatim": round(10 * v)}
        for who, split, v in (
            (before, "train", 0.1),
            (before, "test", 0.1),
            (after, "train", 0.5),
            (after, "test", 0.2),
        )
    ]

    def told(scores, memory, seen):
        memory = pd.concat([memory.assign(**before), seen.assign(**after)])
        return private.findings(pd.DataFrame(scores), memory, pd.DataFrame(shares))

    said = told(scores, unseen, often)
    assert "full, duplicates left in: 1.200 -> 1.010 bits per byte (95 % interval 0.985 to 1.035)." in said
    assert "exposure rises with the times inserted" in said[1]
    assert "Inserted 64 times: 12.63 bits (p < 0.001), 0 of 3 come out" in said[1]
    assert said[2].startswith("Before training: 1.35 bits over 6 canaries (p = 0.51), as by chance.")
    assert said[3].startswith("Controls, full, duplicates left in: 1.53 bits") and "as by chance" in said[3]
    assert said[-1].endswith(
        "5 of 10 training documents are continued word for word, 2 of 10 held-out ones, seeds together."
    )
    flat = told([{**before, "bits_per_byte": 1.01}, *scores[1:]], often, unseen)
    assert flat[0].endswith("no difference shown.") and "is not shown to rise" in flat[1]
    assert "above chance: look for a leak" in flat[2]
    single = told(scores[:2], unseen, often)
    assert single[0].endswith("1.200 -> 1.000 bits per byte (one seed).")


def test_gpt2s_own_tokenizer_makes_every_code_one_token_a_symbol():
    merges = [tuple(line.split()) for line in GPT2_MERGES.read_text("utf-8").splitlines()[1:]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = [*letters, *("".join(pair) for pair in merges)]
    bpe = Tokenizer(BPE({entry: i for i, entry in enumerate(entries)}, merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe)
    for canary in canaries(0, 3, 4):
        symbols = memorise._symbols(tokenizer, canary.prefix)
        assert [len(set(ids)) for ids in symbols] == [10] * 4
        apart = memorise._ids(tokenizer, memorise.PROMPT) + memorise._ids(tokenizer, canary.prefix)
        assert memorise._ids(tokenizer, memorise.PROMPT + canary.prefix) == apart
