"""lib.explore.vocabulary: new tokens in tokenizer and model, for GPT-2's and Llama's architecture, tied and not."""

import copy

import pytest
import torch
from tokenizers import AddedToken
from transformers import LlamaConfig, LlamaForCausalLM

from lib.explore import vocabulary
from lib.explore.encodings import train_encoding
from lib.models import Base, small_gpt2, tiny_tokenizer
from lib.tasks import load_task

POEM = "日照香炉生紫烟，\n遥看瀑布挂前川。"
CHARACTERS = ["山", "日", "香"]


@pytest.fixture(scope="module")
def tang():
    return load_task("tang")


@pytest.fixture(scope="module")
def tokenizer():
    """A byte-level BPE that knows English only, as GPT-2's nearly does."""
    return tiny_tokenizer([e.target for e in load_task("debian").train[:100]], vocab_size=500)


def llama(vocab_size: int, tied: bool) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


MODELS = {
    "gpt2 tied": lambda v: small_gpt2(v, 1, 2, 32),
    "gpt2 untied": lambda v: small_gpt2(v, 1, 2, 32, tie_word_embeddings=False),
    "gpt2 with spare rows": lambda v: small_gpt2(v + 64, 1, 2, 32),
    "llama tied": lambda v: llama(v, True),
    "llama untied": lambda v: llama(v, False),
}


@pytest.fixture(scope="module", params=MODELS)
def base(request, tokenizer) -> Base:
    model = MODELS[request.param](len(tokenizer))
    n = model.num_parameters()
    return Base(model, tokenizer, request.param, True, "a seed", None, n, 256, "")


def tables(model) -> list[torch.Tensor]:
    """Embedding and head, once each."""
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return [embedding] if head is embedding else [embedding, head]


@torch.no_grad()
@pytest.mark.parametrize("init", vocabulary.INITS)
def test_old_rows_stay_and_new_ones_start_as_named(base, init):
    wide = vocabulary.extend(base, CHARACTERS, init, seed=3)
    ids = wide.tokenizer.convert_tokens_to_ids(CHARACTERS)
    assert ids == list(range(len(base.tokenizer), len(base.tokenizer) + 3))
    assert len(tables(wide.model)) == len(tables(base.model)) == (2 if "untied" in base.name else 1)
    for old, new in zip(tables(base.model), tables(wide.model), strict=True):
        assert torch.equal(new[: len(base.tokenizer)], old[: len(base.tokenizer)])
        means = torch.stack([old[base.tokenizer(c, add_special_tokens=False).input_ids].mean(0) for c in CHARACTERS])
        if init == "pieces":
            assert torch.allclose(new[ids], means, atol=1e-7)
        else:
            assert not torch.allclose(new[ids], means, atol=1e-3)
            assert new[ids].std() == pytest.approx(means.std(), rel=0.25)
            assert abs(new[ids].mean()) < means.std() / 3


@torch.no_grad()
def test_text_without_new_characters_is_scored_as_before(base):
    wide = vocabulary.extend(base, CHARACTERS, "random", seed=0)
    text = "a tool for developers 水"
    ids = base.tokenizer(text, return_tensors="pt").input_ids
    assert torch.equal(wide.tokenizer(text, return_tensors="pt").input_ids, ids)
    old = len(base.tokenizer)
    assert torch.allclose(wide.model(ids).logits[..., :old], base.model(ids).logits[..., :old], atol=1e-5)


def test_the_base_is_left_untouched(base):
    weights, entries = copy.deepcopy(base.model.state_dict()), len(base.tokenizer)
    wide = vocabulary.extend(base, CHARACTERS, "pieces")
    with torch.no_grad():
        wide.model.get_input_embeddings().weight.zero_()
    assert len(base.tokenizer) == entries
    now = base.model.state_dict()
    assert now.keys() == weights.keys() and all(torch.equal(now[k], weights[k]) for k in weights)


def test_name_and_count_tell_extensions_apart(base):
    made = [
        vocabulary.extend(base, characters, init, seed)
        for characters, init, seed in (
            (CHARACTERS, "pieces", 0),
            (CHARACTERS, "random", 0),
            (CHARACTERS, "random", 1),
            (CHARACTERS[:2], "random", 0),
            (["水", "日", "香"], "random", 0),
        )
    ]
    assert len({b.name for b in made} | {base.name}) == 6
    assert made[0].parameters == made[0].model.num_parameters()
    row = len(base.tokenizer)  # of the first new token
    first, second = (tables(b.model)[0][row] for b in made[1:3])
    assert not torch.equal(first, second)
    again = vocabulary.extend(base, CHARACTERS, "random", 1)
    assert torch.equal(tables(again.model)[0], tables(made[2].model)[0])


def test_any_text_survives_the_extended_tokenizer(tokenizer, tang):
    model = small_gpt2(len(tokenizer), 1, 2, 32)
    base = Base(model, tokenizer, "tiny", True, "", None, model.num_parameters(), 256, "")
    texts = [e.prompt + e.target for e in tang.train]
    characters = vocabulary.split_characters(tokenizer, texts, 300)
    wide = vocabulary.extend(base, characters, "pieces").tokenizer
    odd = ["日", "山日山", " 日 x日x ", "a\n\n日,", "日<|endoftext|>山", "🙂日\ufffd", "𬭭日", "ｶ日ﬁ"]
    for text in [*odd, *(e.prompt + e.target for e in tang.test[:200])]:
        ids = wide(text, add_special_tokens=False, split_special_tokens=True).input_ids
        assert wide.decode(ids, clean_up_tokenization_spaces=False) == text
        shorter = sum(text.count(c) * (len(tokenizer(c).input_ids) - 1) for c in characters)
        plain = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        assert len(ids) <= len(plain) - shorter


def test_split_characters_are_the_frequent_ones_that_the_tokenizer_splits(tokenizer):
    known = copy.deepcopy(tokenizer)
    known.add_tokens([AddedToken("山", normalized=False)])
    texts = ["山山山山日日日，，，，，x", "香香水水"]
    assert vocabulary.split_characters(tokenizer, texts, 3) == ["山", "日", "水"]
    assert vocabulary.split_characters(known, texts, 3) == ["日", "水", "香"]
    with pytest.raises(ValueError, match=r"hold 4 characters .* fewer than 5"):
        vocabulary.split_characters(tokenizer, texts, 5)


def test_bad_requests_name_the_way_out(base):
    with pytest.raises(ValueError, match="'mean' is unknown; choose one of pieces, random"):
        vocabulary.extend(base, CHARACTERS, "mean")
    with pytest.raises(ValueError, match="'a' is no character that the tokenizer splits"):
        vocabulary.extend(base, ["日", "a"], "pieces")
    with pytest.raises(ValueError, match="given twice"):
        vocabulary.extend(base, ["日", "日"], "pieces")
    with pytest.raises(ValueError, match="is no character that the tokenizer splits"):
        vocabulary.extend(base, [], "pieces")


def test_token_facts_agree_with_a_count_by_hand(tokenizer):
    wide = copy.deepcopy(tokenizer)
    wide.add_tokens([AddedToken("日", normalized=False)])
    plain, extended = (vocabulary.token_facts(t, ["日a", "香"]) for t in (tokenizer, wide))
    assert plain == {
        "tokens": 7,
        "characters": 3,
        "tokens_per_character": 7 / 3,
        "invalid_percent": pytest.approx(600 / 7),
    }
    assert extended["tokens"] == 5 and extended["invalid_percent"] == pytest.approx(60)
    with pytest.raises(ValueError, match="No text"):
        vocabulary.token_facts(tokenizer, [])


def test_gpt2_spends_two_tokens_on_a_chinese_character(tang):
    found = vocabulary.token_facts(train_encoding("gpt2", []), [e.target for e in tang.test])
    assert 2.0 < found["tokens_per_character"] < 2.4  # reference: 0.46 characters per token
    assert found["invalid_percent"] > 80
