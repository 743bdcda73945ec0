"""lib.explore.compress and lib.explore.container: any bytes in, the same bytes out, or a clear refusal."""

import dataclasses
import itertools
import random

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lib.explore import compress as module
from lib.explore import compress_checks, container
from lib.explore.compress import Codec, compress, decompress, fingerprint, walk
from lib.explore.escapes import join, split, to_ids
from lib.models import load_base, small_gpt2

ODD = [
    b"",
    b"hello world",
    "æøå 春眠不覚暁 🙂".encode(),
    b"\xff\xfe in front, \xc3( inside, cut at the end \xe6\x98",
    bytes(range(256)),
    b"<|endoftext|> is text here",
    "e\u0301 \r\n\t\x00 \u200b".encode(),
    b"x" * 150,
    b"a text of middle length about a Debian package, and so on",
]


@pytest.fixture(scope="module")
def codec() -> Codec:
    base = load_base()
    return Codec(base.model, base.tokenizer, batch=3, window=16)


@pytest.fixture(scope="module")
def made(codec):
    return compress(codec, ODD)


@torch.no_grad()
def direct(codec: Codec, before: list[int]) -> np.ndarray:
    """(V,) distribution after `before`, in one pass and without a cache."""
    return codec.model(torch.tensor([before])).logits[0, -1].softmax(-1).numpy()


def test_any_bytes_come_back(codec, made):
    assert decompress(codec, made.data) == ODD
    assert len(ODD[4]) > codec.batch and max(made.tokens) > 3 * codec.window  # both were passed


def test_no_document_is_an_archive_too(codec):
    assert decompress(codec, compress(codec, []).data) == []


def test_random_bytes_come_back(codec):
    rng = random.Random(0)
    documents = [rng.randbytes(rng.randrange(30)) for _ in range(20)]
    assert decompress(codec, compress(codec, documents).data) == documents


def test_the_real_bytes_are_the_cross_entropy(codec, made):
    eos = codec.tokenizer.eos_token_id
    ids = to_ids(codec.tokenizer, "hello world")
    nats = [-np.log(direct(codec, [eos, *ids[:t]])[i]) for t, i in enumerate(ids)]
    assert made.bits[1] == pytest.approx(sum(nats) / np.log(2), rel=1e-4)
    groups = container.read(made.data).groups
    spent = 8 * sum(map(len, groups))
    # each group ends in whole words of 32 bits, of which the coder needs at most two
    assert made.bits.sum() <= spent <= made.bits.sum() * 1.002 + 64 * len(groups)


def test_a_fitting_model_makes_smaller_files(codec):
    """The coder uses the model: a uniform one of the same vocabulary spends log2 V bits a token."""
    flat = small_gpt2(codec.model.config.vocab_size, n_positions=64)
    torch.nn.init.zeros_(flat.transformer.wte.weight)  # tied to the output: all logits 0
    made = compress(Codec(flat, codec.tokenizer, window=64), ODD[1:3])
    assert made.bits.sum() == pytest.approx(made.tokens.sum() * np.log2(flat.config.vocab_size))


def test_walk_sees_what_a_pass_without_cache_sees(codec):
    rng = np.random.default_rng(0)
    lengths, vocabulary = [40, 23, 9, 2], codec.model.config.vocab_size
    ids = [rng.integers(1, vocabulary, n).tolist() for n in lengths]
    seen: dict[tuple[int, int], np.ndarray] = {}

    def code(step, p):
        seen.update({(row, step): p[row] for row in range(len(p))})
        return np.array([ids[row][step] for row in range(len(p))], np.int32)

    walk(codec, lengths, code)
    assert set(seen) == {(r, t) for r, n in enumerate(lengths) for t in range(n)}
    eos, half = codec.tokenizer.eos_token_id, codec.window // 2
    for (row, step), p in seen.items():
        before = [eos, *ids[row][:step]]
        while len(before) > codec.window:  # begun again with the later half, as often as it was full
            before = before[codec.window - half + 1 :]
        np.testing.assert_allclose(p, direct(codec, before), atol=1e-5)


@pytest.mark.parametrize("window", [1, 2_000])
def test_a_window_that_does_not_fit_is_refused(codec, window):
    with pytest.raises(ValueError, match=f"window of {window} tokens: the model has 1024 positions"):
        compress(dataclasses.replace(codec, window=window), [b"text"])


# --- what a tokenizer loses


def words_tokenizer(normalizer=None) -> PreTrainedTokenizerFast:
    """Characters a-z and blank: all else is unknown."""
    alphabet = ["<unk>", "<end>", *"abcdefghijklmnopqrstuvwxyz "]
    made = Tokenizer(models.WordLevel({c: i for i, c in enumerate(alphabet)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.decoder = decoders.Fuse()
    if normalizer:
        made.normalizer = normalizer
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="<end>")


def test_unknown_characters_are_cut_out_with_their_place():
    text, escapes = split("ab春眠c!d".encode() + b"\xff", words_tokenizer())
    assert (text, escapes) == ("abcd", [(2, "春眠".encode()), (3, b"!"), (4, b"\xff")])
    assert join(text, escapes) == "ab春眠c!d".encode() + b"\xff"


@pytest.mark.parametrize(
    ("normalizer", "text", "kept"),
    [
        (normalizers.Lowercase(), "Ab C", "b "),
        (normalizers.Replace("ab", "c"), "xab", ""),  # each character survives alone
        (normalizers.Strip(), " ab ", "ab"),
    ],
    ids=["lowercase", "replace", "strip"],
)
def test_a_tokenizer_that_rewrites_loses_nothing(normalizer, text, kept):
    tokenizer = words_tokenizer(normalizer)
    assert split(text.encode(), tokenizer)[0] == kept
    codec = Codec(small_gpt2(len(tokenizer), n_positions=64), tokenizer, window=64)
    documents = [text.encode(), b"plain", b"\x00\xff"]
    made = compress(codec, documents)
    assert decompress(codec, made.data) == documents
    assert made.escaped_bytes == len(text.encode()) - len(kept.encode()) + 2


# --- damage, other models, other numbers


def test_every_damaged_byte_and_every_cut_is_refused(codec, made):
    for i in range(len(made.data)):
        damaged = bytearray(made.data)
        damaged[i] ^= 1 << i % 8
        with pytest.raises(ValueError, match=r"damaged or cut short|does not begin with LMZ"):
            decompress(codec, bytes(damaged))
    for n in range(len(made.data)):
        with pytest.raises(ValueError, match=r"damaged or cut short|does not begin with LMZ"):
            decompress(codec, made.data[:n])


def test_another_version_is_named(made):
    body = bytearray(made.data[: -container.DIGEST])
    body[3] = 9
    with pytest.raises(ValueError, match="format 9 and this program reads 1"):
        container.read(bytes(body) + container.digest(bytes(body)))


def test_another_model_is_refused_by_name(codec, made):
    config = codec.model.config
    other = small_gpt2(config.vocab_size, n_positions=config.n_positions, seed=1)
    with pytest.raises(ValueError, match=r"compressed with the model 'base' \(fingerprint .*load that"):
        decompress(Codec(other, codec.tokenizer, "other"), made.data)


def test_a_model_that_computes_other_numbers_is_noticed(codec, made):
    """As on a machine whose sums come out otherwise: same weights by name, other probabilities."""
    config = codec.model.config
    other = Codec(small_gpt2(config.vocab_size, n_positions=config.n_positions, seed=1), codec.tokenizer)
    other.__dict__["fingerprint"] = codec.fingerprint
    with pytest.raises(ValueError, match=r"other numbers here than where the file was made \(torch "):
        decompress(other, made.data)


def test_decoding_takes_batch_window_and_threads_from_the_file(codec, made, monkeypatch):
    seen, before = [], torch.get_num_threads()
    other = 1 if before > 1 else 2

    def watched(here, lengths, code):
        seen.append((here.batch, here.window, torch.get_num_threads()))
        return walk(here, lengths, code)

    archive = container.read(made.data)
    data = container.write(dataclasses.replace(archive, threads=other))
    monkeypatch.setattr(module, "walk", watched)
    try:
        decompress(dataclasses.replace(codec, batch=64, window=512), data)
    except ValueError as error:  # with other threads the tiny model's sums may differ
        assert "other numbers" in str(error)
    assert set(seen) == {(3, 16, other)}
    assert torch.get_num_threads() == before


def test_the_fingerprint_is_of_weights_and_tokenizer(codec):
    model, tokenizer = small_gpt2(300, seed=0), codec.tokenizer
    first = fingerprint(model, tokenizer)
    tokenizer("x", padding="max_length", max_length=5, truncation=True)  # leaves its settings behind
    assert fingerprint(model, tokenizer) == first
    assert fingerprint(model, words_tokenizer()) != first
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.bias[3] += 1e-6
    assert fingerprint(model, tokenizer) != first


# --- the container


def test_the_container_keeps_every_field():
    archive = container.Archive(
        b"12345678",
        2,
        64,
        1_024,
        "torch 2 cpu",
        "base",
        [0, 127, 128, 70_000],
        300_000,
        b"abcdefgh",
        [[(0, b"\xff")], [], [(5, b""), (200, b"\x00" * 300)], []],
        [b"one", b""],
    )
    archive = dataclasses.replace(archive, batch=2)
    assert container.read(container.write(archive)) == archive
    assert archive.header_bytes < 70


def test_documents_of_one_batch_are_of_similar_length():
    tokens = [3, 0, 9, 3, 7]
    groups = container.group_bounds(tokens, 2)
    assert groups == [[2, 4], [0, 3]]  # the empty document is in none
    assert [tokens[i] for i in itertools.chain(*groups)] == [9, 7, 3, 3]


def test_the_digest_tells_where_documents_end():
    assert container.digest_of([b"ab", b"c"]) != container.digest_of([b"a", b"bc"])


# --- what the notebook shows of it


def test_token_bits_are_those_of_the_archive(codec):
    text = "hello world, a text"
    table = compress_checks.token_bits(codec, text)
    assert "".join(table["token"]) == text
    assert table["bits"].sum() == pytest.approx(compress(codec, [text.encode()]).bits[0], rel=1e-5)


def test_bit_identity_compares_the_same_positions(codec):
    documents = [f"the package number {i} is a tool for the console".encode() for i in range(4)]
    table = compress_checks.bit_identity(codec, documents, 6).set_index("arrangement")
    assert table["positions"].tolist() == [24, 12, 24, 24]
    assert table.loc["the same again", "identical"] == 1
    assert (table["largest_difference"] < 1e-4).all()  # the same model, up to rounding
