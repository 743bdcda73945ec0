import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import plain_nats

from lib import metrics, models, packing, profile

pytestmark = pytest.mark.usefixtures("float32")
TEXTS = [
    "a small tool that converts images",
    "the quick game of chess for two players",
    "plays music. naïve café, 中文 too",
    "x",
    "reads mail over the network and shows it in a terminal",
]
EXAMPLES = [{"id": f"d{i}", "prompt": f"Topic {i}:\n", "target": t, "group": f"g{i // 2}"} for i, t in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def tokenizer():
    return models.tiny_tokenizer(TEXTS, 300)


@pytest.fixture(scope="module")
def model(tokenizer):
    return models.small_gpt2(len(tokenizer), n_positions=128)


def test_score_equals_one_document_at_a_time_and_counts_eos(model, tokenizer, monkeypatch):
    seen, forward = [], model.forward
    monkeypatch.setattr(model, "forward", lambda **k: seen.append(k["input_ids"]) or forward(**k))
    scores = metrics.score(model, tokenizer, EXAMPLES)
    monkeypatch.undo()
    prompts = sum(len(tokenizer(e["prompt"])["input_ids"]) for e in EXAMPLES)
    assert sum(ids.numel() for ids in seen) == prompts + scores["tokens"].sum()  # no padding
    assert list(scores.columns) == ["id", "group", "nats", "tokens", "bytes"]
    for e, row in zip(EXAMPLES, scores.itertuples(), strict=True):
        assert (row.id, row.group) == (e["id"], e["group"])
        prompt = tokenizer(e["prompt"], add_special_tokens=False)["input_ids"]
        target = tokenizer(e["target"], add_special_tokens=False)["input_ids"]
        ids = [*prompt, *target, tokenizer.eos_token_id]
        assert row.tokens == len(target) + 1  # EOS is a token
        assert row.bytes == len(e["target"].encode())  # and no byte
        assert row.nats == pytest.approx(sum(plain_nats(model, ids, len(prompt))), abs=1e-3)
    with pytest.raises(ValueError, match=r"Document long is .* the limit 128"):
        metrics.score(model, tokenizer, [EXAMPLES[0] | {"id": "long", "target": TEXTS[0] * 20}])


def test_scores_depend_neither_on_the_row_length_nor_on_the_company(model):
    rng = np.random.default_rng(0)
    sizes = [(9, 3), (40, 0), (2, 1), (2, 0), (64, 60), (17, 1)]
    docs = [packing.Encoded(rng.integers(1, 250, n).tolist(), p, n, str(i)) for i, (n, p) in enumerate(sizes)]
    expected = [sum(plain_nats(model, d.input_ids, d.prompt_length)) for d in docs]
    for length in (64, 70, 1000):
        assert np.allclose(metrics.score_encoded(model, docs, length)["nats"], expected, atol=1e-3)
    window = packing.Encoded(rng.integers(1, 250, 129).tolist(), 1, 5)  # its last token is never read
    assert metrics.score_encoded(model, [window])["tokens"].item() == 128
    tokens = metrics.score_encoded(model, docs)["tokens"]
    assert list(tokens) == [6, 39, 1, 1, 4, 16]  # without a prompt the first token has no context
    with pytest.raises(ValueError, match="short"):
        metrics.score_encoded(model, [packing.Encoded([1], 0, 1, "short")])


def test_logits_are_float32_under_bfloat16_autocast_and_the_model_is_left_as_it_was(model, tokenizer, monkeypatch):
    monkeypatch.setattr(profile, "autocast", lambda: torch.autocast("cpu", torch.bfloat16))
    seen, before, original = [], model.config._attn_implementation, metrics.token_nats
    monkeypatch.setattr(metrics, "token_nats", lambda x, y: seen.append(x.dtype) or original(x, y))
    model.train()
    metrics.score(model, tokenizer, EXAMPLES)
    assert set(seen) == {torch.float32}
    assert model.training and model.config._attn_implementation == before
    assert "forward" not in vars(model.get_output_embeddings())
    model.eval()


def frame(nats, bytes_=None, tokens=None, group=None):
    n = len(nats)
    table = {"id": range(n), "nats": nats, "tokens": tokens or [2] * n, "bytes": bytes_ or [1] * n}
    return pd.DataFrame(table | ({"group": group} if group else {}))


def test_ratios_by_hand():
    scores = frame([2 * math.log(2), 6 * math.log(2)], [3, 1], [1, 3])
    assert metrics.bits_per_byte(scores) == pytest.approx(8 / 4)  # not the mean of 2/3 and 6
    row = metrics.describe(scores)
    assert row["perplexity"] == pytest.approx(2**2) and row["bits_per_byte"] == metrics.bits_per_byte(scores)
    assert (row["tokens"], row["bytes"], row["documents"]) == (4, 4, 2)
    with pytest.raises(ValueError, match="score some documents"):
        metrics.bits_per_byte(frame([]))


def test_paired_finds_a_real_difference_and_none_in_the_same():
    rng = np.random.default_rng(0)
    base, size = rng.normal(100, 30, 60), rng.integers(20, 60, 60).tolist()
    better = metrics.paired(frame(base, size), frame(base - 3 + rng.normal(0, 1, 60), size))
    assert better["high"] < 0 and better["p_value"] < 1e-3
    assert better["how"] == "bootstrap interval and sign-flip test over groups"
    assert better["before"] == pytest.approx(base.sum() / sum(size) / math.log(2))
    assert better["low"] < better["difference"] < better["high"]
    even = metrics.paired(frame(base, size), frame(base - 0.1 * np.array(size), size))  # a byte gains as any
    assert even["low"] == pytest.approx(even["high"]) == pytest.approx(-0.1 / math.log(2))
    equal = metrics.paired(frame(base, size), frame(base, size))
    assert (equal["difference"], equal["low"], equal["high"], equal["p_value"]) == (0, 0, 0, 1)


def test_paired_resamples_groups_not_documents():
    shift = [5.0] * 20 + [-5.0] * 20  # two groups that disagree: nothing is certain
    groups = ["a"] * 20 + ["b"] * 20
    before, after = frame([50.0] * 40, group=groups), frame([50.0 + s for s in shift], group=groups)
    result = metrics.paired(before, after)
    assert result["clusters"] == 2 and result["documents"] == 40
    assert result["high"] > 50 and result["p_value"] == 1
    assert metrics.paired(before.drop(columns="group"), after.drop(columns="group"))["high"] < 3


def test_of_correlated_groups_without_an_effect_one_in_twenty_is_shown():
    """20 groups of 5 that share their luck: p < .05 and intervals without 0 are as rare as they say, in 300 trials."""
    rng, trials, shown, apart = np.random.default_rng(0), 300, 0, 0
    group = np.repeat(range(20), 5).tolist()
    for _ in range(trials):
        gap = np.repeat(rng.normal(0, 3, 20), 5) + rng.normal(0, 3, 100)
        found = metrics.paired(frame([50.0] * 100, [20] * 100, group=group), frame(50 + gap, [20] * 100, group=group))
        shown, apart = shown + (found["p_value"] < 0.05), apart + (found["low"] * found["high"] > 0)
    t = metrics.mean_interval(gap.reshape(20, 5).sum(1) / 100 / math.log(2))
    assert t == pytest.approx([found[key] for key in ("difference", "low", "high")])
    error = 2 * math.sqrt(0.05 * 0.95 / trials)
    assert abs(shown / trials - 0.05) < error and abs(apart / trials - 0.05) < error


def test_an_interval_of_shares_stays_on_their_scale():
    for values in ([0.8, 1.0, 0.95], [0.0, 0.01, 0.1], [0.3, 0.9, 0.0]):
        mean, low, high = metrics.mean_interval(values, top=1)
        assert 0 < low < mean < high < 1 and mean == pytest.approx(np.mean(values))
        percent = metrics.mean_interval(np.multiply(values, 100), top=100)
        assert percent == pytest.approx((100 * mean, 100 * low, 100 * high))
    narrow = [0.50, 0.51, 0.52]
    assert metrics.mean_interval(narrow, top=1) == pytest.approx(metrics.mean_interval(narrow), abs=1e-4)
    assert metrics.mean_interval([0, 0, 0], top=1) == (0, 0, 0)


def test_paired_on_means_and_its_complaints():
    a, b, c = (pd.DataFrame({"id": [0, 1], "chrf": v}) for v in ([10.0, 30.0], [20.0, 60.0], [40.0, 80.0]))
    result = metrics.paired(a, [b, c], numerator="chrf", denominator=None)  # seeds are averaged within documents first
    assert (result["before"], result["after"], result["difference"], result["documents"]) == (20, 50, 30, 2)
    with pytest.raises(ValueError, match="different documents"):
        metrics.paired(frame([1.0, 2.0]), [frame([1.0, 2.0]), frame([1.0])])
