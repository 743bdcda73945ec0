"""lib.explore.compress: any bytes in, the same bytes out, or a clear refusal; and the texts of data/release_notes."""

import dataclasses
import hashlib
import itertools
import json
import random
import re

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lib.__main__ import main
from lib.explore import compress as module
from lib.explore.compress import Codec, compress, decompress, walk
from lib.models import small_gpt2
from lib.profile import DATA

ODD = [
    b"",
    b"hello world",
    "æøå 春眠不覚暁 🙂".encode(),
    b"\xff\xfe in front, \xc3( inside, cut at the end \xe6\x98",
    bytes(range(256)),
    b"<|endoftext|> is text here",
    "e\u0301 \r\n\t\x00 \u200b".encode(),
    b"x" * 150,
    random.Random(0).randbytes(30),
    b"a text of middle length about a Debian package, and so on",
]


@pytest.fixture(scope="module")
def codec(base) -> Codec:
    return Codec(base.model, base.tokenizer, batch=3, window=16, mix=True)


@pytest.fixture(scope="module")
def made(codec):
    return compress(codec, ODD)


@torch.no_grad()
def direct(codec: Codec, before: list[int]) -> np.ndarray:
    """(V,) distribution after `before`, in one pass and without a cache."""
    return codec.model(torch.tensor([before])).logits[0, -1].softmax(-1).numpy()


def test_any_bytes_come_back(codec, made):
    other = dataclasses.replace(codec, batch=64, window=512, mix=False, cuts=1)  # the file's own are taken
    assert decompress(other, made[0]) == ODD
    assert decompress(codec, compress(dataclasses.replace(codec, dtype=torch.bfloat16), ODD)[0]) == ODD
    assert decompress(codec, compress(codec, [])[0]) == []
    archive = module.unpacked(made[0])
    assert len(archive.coded) > 1 and max(archive.tokens) > 3 * codec.window  # batch and window were passed


def test_the_real_bytes_are_the_cross_entropy(codec):
    codec = dataclasses.replace(codec, mix=False)
    made = compress(codec, ODD)
    eos = codec.tokenizer.eos_token_id
    ids = module.to_ids(codec.tokenizer, b"hello world")
    nats = [-np.log(direct(codec, [eos, *ids[:t]])[i]) for t, i in enumerate(ids)]
    assert made[1][1] == pytest.approx(sum(nats) / np.log(2), rel=1e-4)
    groups = module.unpacked(made[0]).coded
    # each group ends in whole words of 32 bits, of which the coder needs at most two
    assert made[1].sum() <= 8 * sum(map(len, groups)) <= made[1].sum() * 1.002 + 64 * len(groups)


def test_walk_sees_what_a_pass_without_cache_sees(codec):
    codec = dataclasses.replace(codec, mix=False)
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


def test_the_mixture_and_its_gradient_are_the_written_formula():
    """30 steps, each against autograd over -log p, with counts from the whole texts."""
    mixer, rng = module.Mixer(2, 5), np.random.default_rng(0)
    texts, power = [[-2, -1], [-2, -1]], torch.ones(5)
    for _ in range(30):
        logits, new = rng.normal(size=(2, 5)).astype(np.float32), rng.integers(0, 3, 2)
        held = [torch.tensor(x, requires_grad=True) for x in (mixer.scale, mixer.bias.copy(), mixer.cells.copy())]
        z = [list(held[0] * torch.tensor(row) + held[1]) for row in logits]
        for row, k in itertools.product((0, 1), (1, 2)):
            came = [t[i + k] for t in texts for i in range(2 - k, len(t) - k) if t[i : i + k] == texts[row][-k:]]
            for w in {*came}:
                z[row][w] = z[row][w] + held[2][k - 1, min(4 * came.count(w) // len(came), 3)]
        p = torch.stack([torch.stack(row) for row in z]).softmax(-1)
        np.testing.assert_allclose(mixer.mix(logits), p.detach(), atol=1e-5)
        slopes = torch.autograd.grad(-p[[0, 1], new].log().sum(), held, materialize_grads=True)
        power += slopes[1] ** 2
        mixer.learn(new)
        rates = (0.001, 0.3 / power.sqrt(), 0.02)
        for now, old, slope, rate in zip((mixer.scale, mixer.bias, mixer.cells), held, slopes, rates, strict=True):
            np.testing.assert_allclose(now, (old - rate * slope).detach(), atol=1e-5)
        texts = [[*text, w] for text, w in zip(texts, new.tolist(), strict=True)]


def test_mixing_makes_a_text_that_repeats_itself_smaller(codec):
    plain, mixed = (compress(dataclasses.replace(codec, mix=mix), [b"one two three " * 30])[1] for mix in (False, True))
    assert mixed.sum() < 0.85 * plain.sum()


def rewriting_tokenizer() -> PreTrainedTokenizerFast:
    """Characters a-z and blank; all else is unknown, and capitals come back small."""
    alphabet = ["<unk>", "<end>", *"abcdefghijklmnopqrstuvwxyz "]
    made = Tokenizer(models.WordLevel({c: i for i, c in enumerate(alphabet)}, unk_token="<unk>"))
    made.normalizer, made.decoder = normalizers.Lowercase(), decoders.Fuse()
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="<end>")


def test_a_tokenizer_that_rewrites_loses_nothing():
    tokenizer = rewriting_tokenizer()
    codec = Codec(small_gpt2(len(tokenizer), n_positions=64), tokenizer, window=64)
    documents = ["ab春眠".encode(), b"Ab", b"plain", b"\x00\xff", b""]
    made = compress(codec, documents)
    assert decompress(codec, made[0]) == documents
    assert module.unpacked(made[0]).tokens == [0, 0, 5, 0, 0]
    assert sorted(module.unpacked(made[0]).beside) == [0, 1, 3]


@pytest.mark.fault("damaged byte or cut in a compressed file")
def test_every_damaged_byte_and_every_cut_is_refused(codec, made):
    for i in range(len(made[0])):
        damaged = bytearray(made[0])
        damaged[i] ^= 1 << i % 8
        for data in (bytes(damaged), made[0][:i]):
            with pytest.raises(ValueError, match=r"damaged or cut short|does not begin with LMZ"):
                decompress(codec, data)


def test_another_version_another_model_and_other_numbers_are_refused(codec, made):
    body = bytearray(made[0][: -module.DIGEST])
    body[3] = 9
    with pytest.raises(ValueError, match="format 9 and this program reads 3"):
        module.unpacked(bytes(body) + module.digest(bytes(body)))
    with pytest.raises(ValueError, match="window of 2000 tokens: the model has 1024 positions"):
        compress(dataclasses.replace(codec, window=2_000), [b"text"])
    other = Codec(small_gpt2(codec.model.config.vocab_size, n_positions=1_024, seed=1), codec.tokenizer, "other")
    with pytest.raises(ValueError, match=r"compressed with the model 'base' \(fingerprint .*load that"):
        decompress(other, made[0])
    other.__dict__["fingerprint"] = codec.fingerprint  # as on a machine whose sums come out otherwise
    with pytest.raises(ValueError, match=r"other numbers here than where the file was made \(torch "):
        decompress(other, made[0])
    elsewhere = module.packed(dataclasses.replace(module.unpacked(made[0]), platform="torch 1.0 cpu AVX2"))
    with pytest.raises(ValueError, match=r"Another processor or version .* \(torch 1\.0 cpu AVX2; here torch"):
        decompress(codec, elsewhere)


def test_the_fingerprint_is_of_weights_and_tokenizer(codec):
    model, tokenizer = small_gpt2(300, seed=0), codec.tokenizer
    first = Codec(model, tokenizer).fingerprint
    tokenizer("x", padding="max_length", max_length=5, truncation=True)  # leaves its settings behind
    assert Codec(model, tokenizer).fingerprint == first
    assert Codec(model, rewriting_tokenizer()).fingerprint != first
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.bias[3] += 1e-6
    assert Codec(model, tokenizer).fingerprint != first


def test_the_command_line_writes_beside_and_refuses(tmp_path, capsys):
    file = tmp_path / "note.txt"
    file.write_bytes(b"a note \xff\n")
    assert main(["compress", str(file)]) == 0
    packed = tmp_path / "note.txt.lmz"
    assert packed.exists() and main(["compress", str(file)]) == 1  # never over what is there
    assert re.search(r"note\.txt\.lmz exists: .*-o", capsys.readouterr().err)
    file.unlink()
    assert main(["decompress", str(packed)]) == 0 and file.read_bytes() == b"a note \xff\n"
    packed.write_bytes(packed.read_bytes()[:-9])
    assert main(["decompress", str(packed), "-o", str(tmp_path / "out")]) == 1
    assert re.search(r"note\.txt\.lmz: .*damaged or cut short", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()
    assert main(["compress", str(file), "-o", str(tmp_path / "x"), "--run", "no-such-run"]) == 1
    assert "no-such-run holds no finished run" in capsys.readouterr().err


def test_an_archive_of_several_documents_becomes_a_folder_of_files(base, tmp_path):
    documents = [b"one text", b"", b"bytes \xff\xfe"]
    (tmp_path / "a.lmz").write_bytes(compress(Codec(base.model, base.tokenizer), documents)[0])
    assert [f.read_bytes() for f in sorted(module.decompress_file(tmp_path / "a.lmz").iterdir())] == documents


def test_the_release_notes_are_of_2026_and_as_their_card_says():
    card = json.loads((DATA / "release_notes" / "card.json").read_text("utf-8"))
    data = (DATA / "release_notes" / "documents.jsonl").read_bytes()
    assert hashlib.sha256(data).hexdigest() == card["files_sha256"]["documents.jsonl"]
    rows = [json.loads(line) for line in data.splitlines()]
    assert len(rows) == card["documents"] == len({r["id"] for r in rows})
    for row in rows:
        assert row["date"].startswith("2026-") and row["date"] in row["text"]
