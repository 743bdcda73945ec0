import copy
import math
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lib.explore import encodings, positions, scratch
from lib.explore.scratch import Recipe, documents, model_of, run_path, score_stream, stream, train
from lib.tasks import Task

SHAPE = {"n_positions": 32, "n_layer": 1, "n_head": 2, "n_embd": 32}
TINY = Recipe(seed=0, encoding="bpe", vocab_size=300, train_length=32, train_bytes=20_000, **SHAPE)


@pytest.fixture(scope="module")
def run():
    return train(TINY)


@pytest.fixture(scope="module")
def texts():
    return documents("debian", "test", 600)


def test_a_new_position_or_encoding_is_one_function_and_one_line(monkeypatch):
    def nearby(distance, weight, config):
        return -5.0 * (distance > 8).float().expand(config.n_head, -1, -1)

    monkeypatch.setitem(positions.POSITIONS, "new", positions.Code(bias=nearby))
    monkeypatch.setitem(encodings.ENCODINGS, "new", lambda texts, size: encodings.ENCODINGS["bpe"](texts[:9], size))
    recipe = replace(TINY, train_bytes=6_000, position="new", encoding="new")
    assert train(recipe).bits_per_byte(["some text"]) < 8 and run_path(recipe) != run_path(TINY)


def test_a_run_learns_and_says_what_it_was(run, texts):
    scores = [score_stream(m, run.encoding, texts, 32).bits_per_byte for m in (model_of(TINY), run.model)]
    per_byte = (len(stream(run.encoding, texts)) - 1) / sum(len(t.encode()) for t in texts)
    assert scores[0] == pytest.approx(math.log2(300) * per_byte, rel=0.02)  # a uniform guess
    assert scores[1] < 0.9 * scores[0]
    assert asdict(TINY).items() <= run.summary.items()
    tokens = len(stream(run.encoding, documents("debian", "train", 20_000, seed=0))) - 1
    assert run.summary["steps"] == tokens // 32 // 4
    assert run.summary["tokens"] == run.summary["steps"] * 4 * 32 <= tokens
    assert not run.model.training and run.model.config.use_cache
    assert {p.name for p in run_path(TINY).iterdir()} == {"run.json", "model.safetensors"}


@pytest.mark.parametrize("variants", [("learned", "softmax_sdpa"), ("t5", "window"), ("none", "delta")])
def test_the_same_recipe_gives_the_same_weights_and_a_finished_run_is_loaded(variants, monkeypatch):
    recipe = replace(TINY, position=variants[0], attention=variants[1], train_bytes=6_000)
    assert run_path(recipe) != run_path(replace(recipe, seed=1))
    fresh, first = (dict(m.named_parameters()) for m in (model_of(recipe), train(recipe).model))
    own = [k for k in fresh if "wpe" in k or "beta" in k]
    assert own and not any(torch.equal(fresh[key], first[key]) for key in own)
    shutil.rmtree(run_path(recipe))
    torch.manual_seed(123)  # of no influence
    again = train(recipe)
    monkeypatch.delattr(scratch, "_train")
    loaded = train(recipe)
    assert loaded.model is not again.model and loaded.summary == again.summary
    for run in (again, loaded):
        torch.testing.assert_close(dict(run.model.named_parameters()), first, rtol=0, atol=0)


def test_documents_are_all_taken_once_before_any_is_taken_twice(monkeypatch):
    rows = [{"id": i, "prompt": f"{i}:", "target": "é" * (i + 3), "references": (), "group": i} for i in range(5)]
    task = Task({"train": rows, "validation": rows[:2], "test": rows[:1]}, "five")
    monkeypatch.setattr(scratch, "_task", lambda corpus: task)
    five = [row["prompt"] + row["target"] for row in rows]
    size = sum(len(t.encode()) for t in five)
    assert size == 5 * 2 + 2 * (3 + 4 + 5 + 6 + 7)
    drawn = documents("five", n_bytes=2 * size + 1, seed=3)
    assert len(drawn) == 11 and set(drawn[:5]) == set(drawn[5:10]) == set(five)
    assert drawn[:5] != drawn[5:10]  # a new order each time round
    assert drawn[:3] == documents("five", n_bytes=sum(len(t.encode()) for t in drawn[:3]), seed=3)
    assert documents("five") == five and documents("five", n_bytes=9) == five[:2]  # the task's own order
    assert len({tuple(documents("five", n_bytes=size, seed=s)) for s in range(6)}) > 3


def test_a_stream_holds_whole_documents_between_eos(texts):
    encoding = encodings.train_encoding("bpe", texts, 300)
    ids = stream(encoding, texts)
    assert ids[0] == ids[-1] == encoding.eos_token_id
    assert int((ids == encoding.eos_token_id).sum()) == len(texts) + 1
    assert encoding.decode(ids.tolist()) == "".join(texts)


@pytest.mark.parametrize(("stride", "first"), [(1, 12), (5, 12), (12, 12), (12, 5)])  # 12: blocks without overlap
@torch.no_grad()
def test_sliding_windows_score_every_token_once(stride, first, run, texts):
    text, length = [texts[0][:90]], 12
    ids = stream(run.encoding, text)
    n = len(ids) - 1
    score = score_stream(run.model, run.encoding, text, length, stride, batch_tokens=40, first=first)
    nats, position = np.full(n, np.nan), np.zeros(n, int)
    for new, stop in [(0, first), *((new, new + stride) for new in range(first, n, stride))]:
        start, end = max(stop - length, 0), min(stop, n)  # the last window is shorter
        logits = run.model(ids[None, start:end]).logits[0]
        nats[new:end] = F.cross_entropy(logits, ids[start + 1 : end + 1], reduction="none")[new - start :]
        position[new:end] = range(new - start + 1, end - start + 1)
    np.testing.assert_allclose(score.nats, nats, atol=1e-5)
    assert score.position.tolist() == position.tolist()
    assert n % length and score.n_bytes == len(text[0].encode())


def test_loss_by_position_is_not_about_which_text_stands_where(run):
    texts = documents("debian", "test", 4_000)
    blind = copy.deepcopy(run.model)  # a model of the last token alone: no step is harder for it
    for block in blind.transformer.h:
        block.attn.c_proj.weight.data.zero_()
    blind.transformer.wpe.weight.data.zero_()
    one = replace(run, model=blind)
    cut = [scratch.loss_by_position([one], texts, 16, bins=4, shifts=n)["bits_per_token"].std() for n in (1, 16)]
    assert cut[1] < 1e-3 * cut[0]
    with pytest.raises(ValueError, match="tokens fill one block of 512 at most"):
        scratch.loss_by_position([one], ["ab"], 512)


def test_bits_per_byte_count_the_unknown():
    encoding = encodings.train_encoding("characters", ["abab"])
    model = scratch.build(encoding.vocab_size, n_layer=1, n_head=2, n_embd=32)
    score = score_stream(model, encoding, ["a春b", "ba"], 8)
    assert score.unknown_bits == 8 * 3 + 8  # the character's bytes and its end
    assert score.n_bytes == len(score.nats) == 7  # three tokens, EOS, two tokens, EOS
    assert score.bits_per_byte == pytest.approx((score.nats.sum() / math.log(2) + 32) / 7)


def test_a_bad_recipe_or_stride_is_named(run, texts):
    with pytest.raises(ValueError, match="rows of 32 do not fill one step: raise train_bytes"):
        train(replace(TINY, train_bytes=500, rows=64))
    for field in ("corpus", "encoding", "position", "attention"):
        with pytest.raises(ValueError, match=r"'debain'.* choose"):
            train(replace(TINY, **{field: "debain"}))
    for stride in (0, -1, 17):
        with pytest.raises(ValueError, match=f"stride={stride} must lie between 1 and length=16"):
            score_stream(run.model, run.encoding, texts, 16, stride)
