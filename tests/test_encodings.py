import json
from functools import cache
from itertools import islice

import pytest
from small_models import SMALL_RUN
from tokenizers import models

from lib.explore import encodings, scratch
from lib.explore.encodings import ENCODINGS, UNK, bpe_encode, bpe_steps, encoding_statistics, train_encoding
from lib.explore.scratch import Recipe, documents

POEMS = [
    "春晓\n春眠不觉晓，\n处处闻啼鸟。\n夜来风雨声，\n花落知多少。",
    "静夜思\n床前明月光，\n疑是地上霜。\n举头望明月，\n低头思故乡。",
    "登鹳雀楼\n白日依山尽，\n黄河入海流。\n欲穷千里目，\n更上一层楼。",
    "相思\n红豆生南国，\n春来发几枝。\n愿君多采撷，\n此物最相思。",
]
EOS = "<|endoftext|>"
AWKWARD = [
    f"a {EOS} b",
    f"{UNK} <unk> ## ##ing a##b #include ▁ ▁low",
    " two  blanks,\ttab\r\n\n\nand an end \n",
    "it's 2,048 x 10%: naïve (café) 😀!",
    "=" * 1_500 + "春" * 700,  # no blank for long
    "",
    *POEMS,
]
SIZES = {"bpe": 900, "wordpiece": 900, "unigram": 900}


@cache
def texts(n=150):
    return tuple(documents("debian")[:n])


@cache
def trained(name):
    return train_encoding(name, [*texts(), *2 * AWKWARD], SIZES.get(name))


each = pytest.mark.parametrize("name", ENCODINGS)


@each
def test_text_survives_the_round_trip_and_never_makes_eos_the_last_entry(name):
    encoding = trained(name)
    for text in AWKWARD:
        assert encoding.decode(encoding.encode(text)) == text
        if encoding.unk_token_id is not None:  # no broken characters among their pieces
            assert "".join(encoding.tokens(text)) == text
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
    assert UNK in encoding.tokens(text)
    row = encoding_statistics(encoding, [text, "a word"])
    assert row["lossless_percent"] == 50
    assert row["unknown_percent"] == pytest.approx(100 * 3 / (len(text) + 6))
    assert row["unknown_bits_per_byte"] == pytest.approx(80 / (len(text.encode()) + 6))


def test_our_bpe_with_gpt2s_merges_is_gpt2s():
    merges, encoding = encodings.gpt2_merges(), trained("gpt2")
    assert len(merges) == 50_000 and encoding.eos_token_id == 50256
    assert encoding.encode("Hello world") == [15496, 995] and encoding.encode("!\n\n") == [0, 628]
    assert encoding.tokens("春眠") == ["<E6 98>", "<A5>", "<E7 9C>", "<A0>"]
    ids = encodings.bpe_vocabulary(merges)
    for text in [*texts()[:10], *POEMS, *AWKWARD[:4]]:
        assert [ids[p] for p in bpe_encode(text, merges)] == encoding.encode(text)


def test_statistics():
    row = encoding_statistics(train_encoding("bytes", []), ["ab", "春"])
    counts = {"vocab_size": 257, "bytes": 5, "characters": 3, "tokens": 5, "bytes_per_token": 1.0}
    shares = {"lossless_percent": 100.0, "unknown_percent": 0.0, "invalid_percent": 60.0, "unknown_bits_per_byte": 0.0}
    assert row == counts | shares | {"characters_per_token": 0.6}
    with pytest.raises(ValueError, match="No text"):
        encoding_statistics(train_encoding("bytes", []), [""])


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


def test_a_new_encoding_is_one_function_and_one_line(monkeypatch):
    def pairs_of_bytes(texts, vocab_size):
        """One merge, of the most frequent pair."""
        (a, b), _ = next(bpe_steps(texts))
        merge = (encodings.BYTE_CHARACTERS[a[0]], encodings.BYTE_CHARACTERS[b[0]])
        return encodings._encoding("pair", models.BPE({**encodings.CHARACTER_BYTES, "".join(merge): 256}, [merge]))

    for registry in (ENCODINGS, encodings.OWN_SIZE):
        monkeypatch.setitem(registry, "pair", pairs_of_bytes)
    encoding = train_encoding("pair", ["the thin thing"])
    assert encoding.tokens("with the") == ["w", "i", "th", " ", "th", "e"]
    run = scratch.train(Recipe(seed=0, encoding="pair", **SMALL_RUN | {"vocab_size": None}))
    assert run.model.config.vocab_size == 258 and run.encoding.decode(run.encoding.encode("é 春")) == "é 春"


def test_bpe_of_the_paper():
    """The toy corpus of Sennrich et al. 2016, with GPT-2's blank in front of a word."""
    corpus = [" low" * 5 + " lower" * 2 + " newest" * 6 + " widest" * 3]
    steps = list(islice(bpe_steps(corpus), 4))
    assert [(b"".join(pair), count) for pair, count in steps] == [(b"es", 9), (b"est", 9), (b"lo", 7), (b" lo", 7)]
    merges = [pair for pair, _ in steps]
    assert list(encodings.bpe_encode_steps(" lowest", {pair: rank for rank, pair in enumerate(merges)})) == [
        [b" ", b"l", b"o", b"w", b"e", b"s", b"t"],
        [b" ", b"l", b"o", b"w", b"es", b"t"],
        [b" ", b"l", b"o", b"w", b"est"],
        [b" ", b"lo", b"w", b"est"],
        [b" lo", b"w", b"est"],
    ]
    assert bpe_encode(" lowest newer", merges) == [b" lo", b"w", b"est", *(bytes([b]) for b in b" newer")]


@pytest.mark.parametrize("corpus", [texts(), POEMS * 3, ["aaaa aaaaa abab babab " * 3]])
def test_bpe_equals_the_library(corpus):
    merges = [pair for pair, _ in islice(bpe_steps(corpus), 300)]
    size = 256 + len(merges) + 1
    library = train_encoding("bpe", corpus, size)
    named = json.loads(library.tokenizer.to_str())["model"]["merges"]
    ours = [tuple(bytes(encodings.CHARACTER_BYTES[c] for c in part) for part in m) for m in named]
    assert merges == ours
    ids = encodings.bpe_vocabulary(merges)
    for text in [*corpus[:40], *AWKWARD]:
        pieces = bpe_encode(text, merges)
        assert [ids[p] for p in pieces] == library.encode(text)
        assert b"".join(pieces).decode() == text
    if len(merges) < 300:  # it stopped where the library stops
        with pytest.raises(ValueError, match=f"gave {size} entries"):
            train_encoding("bpe", corpus, size + 1)
