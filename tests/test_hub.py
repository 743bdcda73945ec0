"""Benchmark texts from outside and `python -m lib fetch`, against a hub of our own."""

import hashlib
import shutil
from pathlib import Path

import pandas as pd
import pytest
from hub_server import nothing_within_reach, serve

from lib import __main__, hub
from lib.hub import OUTSIDE, Unavailable, outside

TEXTS = {  # name -> file, small text in its place
    "wikitext2": ("wiki.test.raw", " \n = A title = \n \n A line , tokenised . \n"),
    "lambada": ("lambada_test.jsonl", '{"text": "the last word"}\n'),
    "blimp": ("blimp_all.tsv", "a_first\tellipsis\tA good one.\tA bad one.\nb_second\tbinding\tGood.\tBad.\n"),
}


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """Nothing within reach, and small stand-ins for the published files."""
    nothing_within_reach(tmp_path, monkeypatch)
    for name, (file, text) in TEXTS.items():
        monkeypatch.setitem(OUTSIDE, name, {file: hashlib.sha256(text.encode()).hexdigest()})
    return tmp_path


@pytest.fixture
def server(home, monkeypatch):
    """A hub with the three data sets in the form the hub has them."""
    lines = [line.split("\t") for line in TEXTS["blimp"][1].splitlines()]
    columns = ["UID", "linguistics_term", "sentence_good", "sentence_bad"]
    tables = {line[0]: pd.DataFrame([line], columns=columns).to_parquet() for line in lines}
    paradigms = {f"{uid}/train-00000-of-00001.parquet": table for uid, table in tables.items()}
    rows = ["", " = A title = \n", "", " A line , tokenised . \n"]
    wiki = {"wikitext-2-raw-v1/test-00000-of-00001.parquet": pd.DataFrame({"text": rows}).to_parquet()}
    lambada = {"data/lambada_test_en.jsonl": TEXTS["lambada"][1].encode()}
    with serve() as running:
        for name, files in (("wikitext2", wiki), ("lambada", lambada), ("blimp", paradigms)):
            running.add(f"datasets/{hub.HUB_COPIES[name]}", {"README.md": b"card", **files})
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


@pytest.mark.parametrize("name", TEXTS)
def test_hub_copy_becomes_the_published_file(server, home, name):
    file, text = TEXTS[name]
    assert (outside(name) / file).read_bytes() == text.encode()
    server.requests.clear()
    assert outside(name) == home / "mirror" / name and not server.requests


def test_another_file_on_the_hub_is_not_written(server, home):
    server.files["datasets/EleutherAI/lambada_openai/data/lambada_test_en.jsonl"] = b"{}\n"
    with pytest.raises(Unavailable, match=r"lambada_test.jsonl is not the published file"):
        outside("lambada")
    assert not (home / "mirror" / "lambada").exists()


def test_unavailable_names_the_way_out(home, server, monkeypatch, capsys):
    monkeypatch.setenv("PROFILE", "fast")
    with pytest.raises(Unavailable, match="fast profile"):
        outside("lambada")
    assert not server.requests
    monkeypatch.setenv("PROFILE", "cpu")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Unavailable, match=r"DATA_MIRROR.*cannot be reached.*fetch blimp --mirror https"):
        outside("blimp")
    assert hub.reached(outside, "blimp") is None and "Skipped: " in capsys.readouterr().out
    with pytest.raises(Unavailable, match="only the untokenised release"):
        outside("e2e")
    with pytest.raises(ValueError, match=r"'imdb'.*blimp"):
        outside("imdb")


def test_fetch_takes_what_is_whole_and_replaces_what_is_damaged(server, home, monkeypatch, capsys):
    file, text = TEXTS["lambada"]
    (home / "given" / "lambada").mkdir(parents=True)
    (home / "given" / "lambada" / file).write_text(text, "utf-8", newline="\n")
    monkeypatch.setenv("DATA_MIRROR", str(home / "given"))
    assert __main__.main(["fetch", "lambada"]) == 0
    assert capsys.readouterr().out.split()[:2] == ["lambada", f"{home / 'given' / 'lambada'},"] and not server.requests
    (home / "given" / "lambada" / file).write_text("damaged", "utf-8", newline="\n")
    assert hub.fetch(["lambada"]) == 0 and "from http://127" in capsys.readouterr().out
    assert (home / "mirror" / "lambada" / file).read_text("utf-8") == text
    assert hub.fetch(["lambada"]) == 0 and "already there" in capsys.readouterr().out
    (home / "given" / "lambada" / file).write_text(text, "utf-8", newline="\n")
    assert outside("lambada") == home / "given" / "lambada"  # before data/mirror


def test_fetch_of_everything_offline_says_why(home, capsys):
    assert hub.fetch() == 1  # no model at all; the data sets alone would not count
    rows = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("Fetching SmolLM2")]
    assert [row.split()[0] for row in rows] == ["model", *OUTSIDE] and all("not fetched: " in row for row in rows)
    with pytest.raises(ValueError, match="'everything'"):
        hub.fetch(["everything"])


def test_fetch_model_goes_on_and_ends_whole(server, home, monkeypatch, capsys, small_folder):
    folder, name = home / "models" / "gpt2", f"{hub.GPT2}/model.safetensors"
    files = {path.name: path.read_bytes() for path in small_folder.iterdir()}
    weights = files["model.safetensors"]
    monkeypatch.setattr(hub, "GPT2_SHA256", hashlib.sha256(weights).hexdigest())
    server.add(hub.GPT2, {**files, "pytorch_model.bin": b"a pickle"})
    server.lies_about[name] = weights[:1000]
    assert hub.fetch(["model"]) == 1 and not folder.exists()  # and no stand-in either: pip is offline
    server.lies_about.clear()
    server.cut_once.add(name)
    assert hub.fetch(["model"]) == 0 and "GPT-2 117M, from http://127.0.0.1" in capsys.readouterr().out
    assert {path.name for path in folder.iterdir()} == set(files)
    assert (folder / "model.safetensors").read_bytes() == weights
    assert not (home / "models" / ".gpt2.partial").exists()
    shutil.rmtree(folder)
    hub.hub_model(hub.GPT2, hub.GPT2_REVISION)  # into the cache
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert hub.fetch(["model"]) == 0 and "already there" in capsys.readouterr().out
