"""lib.explore.compressors, lib.explore.compress_files and data/release_notes: rivals, files, the other process, sentences."""

import hashlib
import importlib.util
import json
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from lib.__main__ import main
from lib.explore import compress_files, compressors
from lib.explore.compress import Codec, compress
from lib.explore.compressors import COMPRESSORS, break_even, by_document, domains, measure_compressor
from lib.models import load_base
from lib.profile import DATA


@pytest.fixture(scope="module")
def training() -> list[bytes]:
    return compressors.training_texts()[:800]


@pytest.fixture(scope="module")
def texts() -> list[bytes]:
    return domains({"debian": 8}, 2_000)["debian"]


@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_rival_gives_back_what_it_got(name, texts, training):
    made = COMPRESSORS[name](training)
    for data in (texts[0], b"", bytes(range(256)) * 3):
        assert made.decode(made.encode(data)) == data
    assert len(made.encode(b"".join(texts))) < 0.7 * sum(map(len, texts))


def test_what_knows_the_domain_needs_less(texts, training):
    sizes = {name: len(make(training).encode(texts[0])) for name, make in COMPRESSORS.items()}
    plain = min(sizes[n] for n in ("gzip -9", "xz -9e", "zstd -19", "zstd --ultra -22", "brotli 11"))
    assert sizes["zstd -19, trained dictionary"] < plain
    assert sizes["zstd -22 after the training text"] < plain


def test_rows_count_real_bytes_both_ways(texts, training):
    gzip = COMPRESSORS["gzip -9"](training)
    together, each = measure_compressor("gzip -9", gzip, "debian", texts)
    assert (together["packaging"], each["packaging"]) == ("together", "each")
    assert together["compressed_bytes"] == len(gzip.encode(b"".join(texts)))
    assert each["compressed_bytes"] == sum(len(gzip.encode(t)) for t in texts)
    assert each["bits_per_byte"] == 8 * each["compressed_bytes"] / sum(map(len, texts))
    assert together["round_trip"] is True
    raw = COMPRESSORS["zstd -22 after the training text"](training)
    for row in measure_compressor("raw", raw, "debian", texts[:1]):
        assert row["shared_bytes"] == sum(map(len, training))


def test_a_rival_that_loses_a_byte_is_told(texts):
    bad = compressors.Compressor(lambda data: data, lambda data: data[:-1])
    assert not any(row["round_trip"] for row in measure_compressor("bad", bad, "debian", texts))


def test_domains_take_the_leading_documents_that_are_short_enough():
    few = domains({"debian": 2, "release_notes": 3}, 10_000)
    more = domains({"debian": 400, "release_notes": 9, "tang": 1}, 10_000)
    assert few["debian"] == more["debian"][:2] and few["release_notes"] == more["release_notes"][:3]
    assert few["debian"][0].startswith(b"Package: ")
    short = domains({"debian": 5}, 500)["debian"]
    assert short == [d for d in more["debian"] if len(d) <= 500][:5]
    with pytest.raises(ValueError, match="'wiki' is unknown; there are debian, release_notes, tang"):
        domains({"wiki": 1}, 500)


# --- files and the command line


def test_the_other_process_compares_byte_for_byte(tmp_path):
    base = load_base()
    texts = {"debian": [b"one text", b"", b"bytes \xff\xfe"], "tang": ["春眠".encode()]}
    codec = Codec(base.model, base.tokenizer)
    rows = compressors.measure_model(codec, "before", 0, texts, tmp_path)
    assert [row["identical_documents"] for row in rows] == [3, 1]
    assert all(row["round_trip"] is True and row["decode_kb_per_s"] > 0 for row in rows)
    debian, tang = (next(tmp_path.glob(f"compressed-{d}-*.lmz")) for d in texts)
    assert [row["compressed_bytes"] for row in rows] == [debian.stat().st_size, tang.stat().st_size]
    # the comparison can fail: documents that are not those of the archive
    told = compress_files.decompress_elsewhere({tang: [b"x"], debian: [b"one text", b"", b"other"]})
    assert [same for same, _ in told] == [[False], [True, True, False]]


def test_the_other_process_failing_is_told(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "a warning\nValueError: a.lmz: damaged\n")
    monkeypatch.setattr(compress_files, "shell", lambda *_: failed)
    (tmp_path / "a.lmz").touch()
    with pytest.raises(RuntimeError, match=r"^ValueError: a\.lmz: damaged$"):
        compress_files.decompress_elsewhere({tmp_path / "a.lmz": [b""]})


def test_what_was_measured_is_read_back_and_what_was_interrupted_goes_on(tmp_path, monkeypatch):
    base, calls = load_base(), {"compress": 0, "decompress": []}

    def counted(*arguments):
        calls["compress"] += 1
        return compress(*arguments)

    def elsewhere(archives):
        calls["decompress"].append([len(d) for d in archives.values()])
        if len(calls["decompress"]) == 1:
            raise KeyboardInterrupt
        return [([True] * len(d), 1.0) for d in archives.values()]

    monkeypatch.setattr(compressors, "compress", counted)
    monkeypatch.setattr(compressors, "decompress_elsewhere", elsewhere)
    codec = Codec(base.model, base.tokenizer)
    measure = lambda texts: compressors.measure_model(codec, "before", 0, texts, tmp_path)  # noqa: E731
    texts = {"debian": [b"a text", b"a second"], "tang": [b"a third"]}
    with pytest.raises(KeyboardInterrupt):
        measure(texts)
    first = measure(texts)
    assert calls == {"compress": 2, "decompress": [[2, 1], [2, 1]]}  # no text was coded twice
    assert measure(texts) == first and len(calls["decompress"]) == 2
    measure({**texts, "tang": [b"another"]})
    assert calls["compress"] == 3 and calls["decompress"][2:] == [[1]]


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
    assert main(["decompress", str(packed), str(packed), "-o", str(tmp_path / "out")]) == 1
    assert "-o names one place for 2 files" in capsys.readouterr().err
    assert main(["decompress", str(file)]) == 1
    assert "does not end in .lmz" in capsys.readouterr().err
    assert main(["compress", str(file), "-o", str(tmp_path / "x"), "--run", "no-such-run"]) == 1
    assert "no-such-run holds no finished run" in capsys.readouterr().err


# --- tables and sentences


def table(after: list[float], rival: float = 2.0) -> pd.DataFrame:
    common = {
        "domain": "debian",
        "documents": 4,
        "encode_kb_per_s": 1.0,
        "decode_kb_per_s": 1.0,
        "round_trip": True,
        "packaging": "archive",
        "identical_documents": 4,
        "ideal_bytes": 100,
        "original_bytes": 500,
        "compressed_bytes": 110,
        "shared_bytes": 1_000_000,
        "header_bytes": 0,
    }
    rows = [{**common, "compressor": "model before", "stage": "before", "seed": 0, "bits_per_byte": 1.5}]
    rows += [
        {**common, "compressor": "model after", "stage": "after", "seed": s, "bits_per_byte": b}
        for s, b in enumerate(after)
    ]
    rows.append(
        {
            **common,
            "compressor": "xz",
            "stage": "none",
            "seed": 0,
            "bits_per_byte": rival,
            "packaging": "together",
            "shared_bytes": 0,
            "encode_kb_per_s": 300.0,
        }
    )
    return pd.DataFrame(rows)


def test_break_even_by_hand():
    found = break_even(table([1.0, 2.0, 3.0])).set_index("seed")
    before = found[found["compressor"] == "model before"]["megabytes"].item()
    assert before == pytest.approx(1e6 * 8 / 0.5 / 1e6)
    after = found[found["compressor"] == "model after"]["megabytes"]
    assert after.tolist() == pytest.approx([8.0, np.inf, np.inf])


def pairs(low: float, high: float) -> pd.DataFrame:
    """A table of `by_document` with this interval."""
    return pd.DataFrame([{"domain": "debian", "difference": (low + high) / 2, "low": low, "high": high}])


@pytest.mark.parametrize(
    ("after", "rival", "interval", "wanted"),
    [
        ([1.0, 1.01, 0.99], 2.0, (-0.6, -0.4), ["takes fewer bits", "model beats it", "pay for themselves from 8.0"]),
        ([1.9, 1.91, 1.89], 1.2, (0.3, 0.5), ["takes more bits", "does not beat it", "never pay for themselves in 3"]),
        ([1.2, 1.9, 1.5], 2.0, (-0.6, -0.4), ["no difference that is borne out"]),  # the seeds differ
        ([1.0, 1.01, 0.99], 2.0, (-0.6, 0.1), ["no difference that is borne out"]),  # the documents do
        ([1.4], 2.0, (-0.2, -0.1), ["takes fewer bits", "1.400 (one seed) after"]),
    ],
)
def test_the_sentences_follow_the_numbers(after, rival, interval, wanted):
    frame, documents = table(after, rival), 4 * (len(after) + 1)
    lines = "\n".join(compressors.findings(frame, break_even(frame), pairs(*interval)))
    for phrase in [*wanted, f"{documents} of {documents} documents", "add 10.0%", "300.0 times"]:
        assert phrase in lines, lines
    assert "nan" not in lines


def test_a_longer_header_is_no_effect_of_the_training():
    frame = table([1.6, 1.61, 1.59])  # 1.5 before
    frame.loc[frame["stage"] == "after", "header_bytes"] = 30  # 0.48 of these bits per byte
    line = compressors.findings(frame, break_even(frame), pairs(-0.5, -0.3))[2]
    assert "headers are 0.000 and 0.480" in line and "takes fewer bits" in line


def test_a_failed_round_trip_is_said():
    frame = table([1.0, 1.0, 1.0])
    frame.loc[1, "identical_documents"] = 3
    frame.loc[frame["stage"] == "none", "round_trip"] = False
    first = compressors.findings(frame, break_even(frame), pairs(-1, -0.5))[0]
    assert first.startswith("15 of 16 documents") and "NOT all exact" in first


def test_by_document_averages_the_seeds():
    bits = {"before": [[80, 160]], "after": [[40, 80], [60, 120]]}
    rows = [{"domain": "debian", "stage": k, "document_bits": b} for k, bs in bits.items() for b in bs]
    (row,) = by_document(rows, {"debian": [b"x" * 10, b"y" * 20]}).to_dict("records")
    assert (row["before"], row["after"], row["seeds"], row["documents"]) == (8, 5, 2, 2)
    assert row["low"] == row["high"] == row["difference"] == -3  # 3 bits a byte in both documents


def test_a_rate_is_all_bytes_over_all_seconds():
    rows = pd.DataFrame({"original_bytes": [1_000, 3_000], "encode_kb_per_s": [1.0, 3.0]})
    assert compressors._rate(rows, "encode_kb_per_s") == 2


# --- data/release_notes


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, DATA / f"{name}.py")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script("build_debian")
build = script("build_release_notes")


def test_the_release_notes_are_of_2026_and_as_their_card_says():
    card = json.loads((DATA / "release_notes" / "card.json").read_text())
    data = compressors.NOTES.read_bytes()
    assert hashlib.sha256(data).hexdigest() == card["files_sha256"]["documents.jsonl"]
    rows = [json.loads(line) for line in data.splitlines()]
    assert len(rows) == card["documents"] == len({r["id"] for r in rows})
    low, high = card["lengths_bytes"]
    for row in rows:
        assert row["date"].startswith("2026-") and row["date"] in row["text"]
        assert low <= len(row["text"].encode()) <= high
        assert not re.search(r"[\w.]+@\w+\.\w+", row["text"])  # no address of anybody


def test_releases_end_where_the_next_begins_and_undated_ones_are_left():
    text = (
        "Unreleased\n==========\n\n- nothing\n\n3.2 (2026-05-01)\n================\n\n- new in 3.2\n\n----\n\n"
        ".. _changes_3-1:\n\nVersion 3.1\n-----------\n\nReleased 2026-01-02\n\n- new in 3.1\n\n"
        "3.0 (2025-12-31)\n================\n\n- old\n"
    )
    found = build.releases(text)
    assert [(v, d) for v, d, _ in found] == [("3.2", "2026-05-01"), ("3.1", "2026-01-02")]
    assert found[0][2] == "3.2 (2026-05-01)\n================\n\n- new in 3.2\n"
    assert found[1][2].endswith("- new in 3.1\n")
    markdown = "## [26.1.0](https://x/26.1.0) - 2026-03-19\n\n### Added\n\n- a\n\n## [25.4.0](https://x) - 2025-10-06\n"
    assert [v for v, _, _ in build.releases(markdown)] == ["26.1.0"]


def test_other_bytes_than_the_pinned_are_refused(tmp_path):
    (tmp_path / "pip-26.3.tar.gz").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"pip-26\.3\.tar\.gz has sha256 .*, not 6c36ae7d"):
        build.changelog(tmp_path / "pip-26.3.tar.gz")
