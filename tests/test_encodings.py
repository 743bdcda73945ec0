from functools import cache

import pytest
from notebook_code import defined

from lib.explore import gpt2_bpe, scratch
from lib.explore.encodings import ENCODINGS, UNK, train_encoding

seen = defined("04_token_encoding", "piece_text", "tokens")
POEMS = [
    "春晓\n春眠不觉晓，\n处处闻啼鸟。\n夜来风雨声，\n花落知多少。",
    "静夜思\n床前明月光，\n疑是地上霜。\n举头望明月，\n低头思故乡。",
    "登鹳雀楼\n白日依山尽，\n黄河入海流。\n欲穷千里目，\n更上一层楼。",
    "相思\n红豆生南国，\n春来发几枝。\n愿君多采撷，\n此物最相思。",
]
AWKWARD = [
    "a <|endoftext|> b",
    f"{UNK} <unk> ## ##ing a##b #include ▁ ▁low",
    " two  blanks,\ttab\r\n\n\nand an end \n",
    "it's 2,048 x 10%: naïve (café) 😀!",
    "=" * 1_500 + "春" * 700,  # no blank for long
    "",
    *POEMS,
]
SIZES = {"bpe": 900, "wordpiece": 900, "unigram": 900}
each = pytest.mark.parametrize("name", ENCODINGS)


@cache
def texts(n=150):
    return tuple(scratch.documents("debian")[:n])


@cache
def trained(name):
    return train_encoding(name, [*texts(), *2 * AWKWARD], SIZES.get(name))


@each
def test_text_survives_the_round_trip_and_never_makes_eos_the_last_entry(name):
    encoding = trained(name)
    for text in AWKWARD:
        assert encoding.decode(encoding.encode(text)) == text
        if encoding.unk_token_id is not None:  # no broken characters among their pieces
            assert "".join(seen.tokens(encoding, text)) == text
    assert encoding.encode_batch(AWKWARD) == [encoding.encode(t) for t in AWKWARD]
    used = {i for ids in encoding.encode_batch([*texts(), *AWKWARD]) for i in ids}
    assert used <= set(range(encoding.eos_token_id)) and encoding.vocab_size == encoding.eos_token_id + 1
    assert encoding.vocab_size == SIZES.get(name, encoding.vocab_size)
    assert encoding.decode([*encoding.encode("a b"), encoding.eos_token_id]) == "a b"


@pytest.mark.parametrize("name", ["characters", "wordpiece", "unigram"])
def test_an_unknown_character_is_lost_alone_and_priced(name):
    encoding = trained(name)
    text = "床前明豪豪月光 café ж."
    assert encoding.lost(text) == ["豪豪", "ж"]
    assert encoding.unknown_bits(text) == 8 * (6 + 1) + 8 * (2 + 1)
    assert encoding.decode(encoding.encode(text)).replace("\ufffd", "") == "床前明月光 café ."
    assert UNK in seen.tokens(encoding, text)


def test_gpt2s_tokens_are_those_of_its_tokenizer():
    encoding, tokenizer = trained("gpt2"), gpt2_bpe.tokenizer()
    assert encoding.eos_token_id == tokenizer.eos_token_id == 50256
    assert encoding.encode("Hello world, 你好") == [15496, 995, 11, 220, 19526, 254, 25001, 121]
    assert encoding.encode("!\n\n") == [0, 628]
    assert seen.tokens(encoding, "春眠") == ["<E6 98>", "<A5>", "<E7 9C>", "<A0>"]
    for text in [*texts()[:10], *AWKWARD]:
        assert encoding.encode(text) == tokenizer(text, split_special_tokens=True).input_ids


@pytest.mark.parametrize(
    ("name", "corpus", "size", "message"),
    [
        ("bbpe", ["a"], 300, "'bbpe' is unknown: choose one of bytes, characters, gpt2, bpe"),
        ("bpe", [], 300, "No text to train bpe on"),
        ("bpe", "a text", 300, "pass a list of texts"),
        ("unigram", ["a text"], None, "unigram with vocab_size=None: it needs a vocab_size"),
        ("gpt2", ["a text"], 4096, "gpt2 with vocab_size=4096: it has its own vocabulary"),
        ("wordpiece", [*POEMS, *POEMS], 40, "An alphabet of 10 of the text's 78 characters"),
        ("bpe", ["low low lower"], 4096, "13 bytes gave 260 entries. Choose a size that fits or train on more text"),
        ("unigram", POEMS * 20, 90, "gave"),  # few and long words: the library's pruning would run for ever
    ],
)
def test_bad_input_is_said_in_one_sentence(name, corpus, size, message):
    with pytest.raises(ValueError, match=message):
        train_encoding(name, corpus, size)
