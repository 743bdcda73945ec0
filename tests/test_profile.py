"""Which profile, its budgets, and where files go; settings of the environment and their options."""

import importlib
import os
import re
import subprocess
import sys

import pytest
import torch

import lib
from lib import SETTINGS, profile, results
from lib.__main__ import main


@pytest.mark.parametrize(("rank", "seen"), [(None, "0"), ("1", None)])
def test_one_process_sees_one_gpu(monkeypatch, rank, seen):
    for name, value in (("CUDA_VISIBLE_DEVICES", None), ("LOCAL_RANK", rank)):
        monkeypatch.setenv(name, value or "")
        if not value:
            monkeypatch.delenv(name)
    importlib.reload(lib)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == seen


@pytest.mark.parametrize("name", ["quick", "full,"])
def test_an_unknown_profile_lists_the_known(monkeypatch, name):
    monkeypatch.setenv("PROFILE", name)
    with pytest.raises(ValueError, match="choose one of fast, cpu, full"):
        profile.name()


def test_the_profile_follows_the_machine_and_the_environment(monkeypatch):
    monkeypatch.delenv("PROFILE")
    for gpu, name in ((False, "cpu"), (True, "full")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        assert (profile.name(), profile.device().type) == (name, "cuda" if gpu else "cpu")  # Apple's only if asked for
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("RESULTS", "stored")
    assert profile.name() == "full", "the shipped results are of the full profile"
    monkeypatch.setenv("PROFILE", "CPU")
    assert profile.name() == "cpu"


def test_results_are_kept_on_drive_where_it_is_mounted_and_checkpoints_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(profile, "DRIVE", tmp_path)
    monkeypatch.setenv("PROFILE", "fast")  # a test never writes there
    assert profile.kept_root() == profile.output_root() != profile.ROOT
    monkeypatch.setenv("PROFILE", "cpu")
    results.Results("99_drive").save()
    assert (tmp_path / "gpt2-coursework/data/results/99_drive.json").is_file()
    assert profile.output_root() == profile.ROOT
    monkeypatch.setattr(profile, "DRIVE", tmp_path / "not mounted")
    assert profile.kept_root() == profile.ROOT


@pytest.mark.parametrize(("bfloat16", "chosen"), [(4.7, torch.float32), (0.3, torch.bfloat16), (0.95, torch.float32)])
def test_the_number_format_is_the_one_that_a_product_is_fastest_in(monkeypatch, bfloat16, chosen):
    monkeypatch.delenv("DTYPE", raising=False)
    monkeypatch.setenv("DEVICE", "cpu")
    # a flag that lies
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: bfloat16 > 1, raising=False)
    monkeypatch.setattr(profile, "product_seconds", {torch.float32: 1.0, torch.bfloat16: bfloat16}.__getitem__)
    assert profile.autocast_dtype.__wrapped__() == chosen  # behind the cache


def test_settings_override_device_and_number_format(monkeypatch):
    monkeypatch.setenv("DTYPE", "float16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("DEVICE", "cpu")
    assert (profile.device().type, profile.autocast_dtype.__wrapped__()) == ("cpu", torch.float16)
    monkeypatch.setenv("DTYPE", "half")
    with pytest.raises(ValueError, match="DTYPE='half' is unknown; choose one of"):
        profile.autocast_dtype.__wrapped__()


def test_an_option_is_a_setting_and_a_file_is_found_from_a_notebooks_folder(tmp_path, monkeypatch):
    for name in ("TASK", "HF_ENDPOINT"):
        monkeypatch.setenv(name, "before")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.jsonl").touch()
    asked = []
    monkeypatch.setattr("lib.run.run", asked.append)
    assert main(["run", "02", "--mirror", "https://x", "--task", "my.jsonl"]) == 0 and asked == [["02"]]
    assert (os.environ["HF_ENDPOINT"], os.environ["TASK"]) == ("https://x", str(tmp_path / "my.jsonl"))


def test_settings_are_stripped_and_children_speak_utf_8():
    code = "import lib, os; print(os.environ['PROFILE'], os.environ['TASK'], os.environ['PYTHONUTF8'], sep='|')"
    given = os.environ | {"PROFILE": "fast ", "TASK": '"my.jsonl"', "PYTHONPATH": str(profile.ROOT)}
    run = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, encoding="utf-8")
    assert run.stdout.strip() == "fast|my.jsonl|1"
    text = "".join(path.read_text("utf-8") for path in (profile.ROOT / "lib").rglob("*.py"))
    used = set(re.findall(r'environ(?:\.get\(|\[)"(\w+)"', text))
    assert len(used) > 8 and used <= {*SETTINGS, "RANK", "WORLD_SIZE"}
