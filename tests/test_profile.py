"""Which profile, its budgets, and where files go."""

import pytest
import torch

from lib import profile, results


@pytest.mark.parametrize("name", ["quick", "full,"])
def test_an_unknown_profile_lists_the_known(monkeypatch, name):
    monkeypatch.setenv("PROFILE", name)
    with pytest.raises(ValueError, match="choose one of fast, cpu, full"):
        profile.name()


def test_the_profile_follows_the_machine_and_the_environment(monkeypatch):
    monkeypatch.delenv("PROFILE")
    for gpu, name in ((False, "cpu"), (True, "full")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        assert profile.name() == name
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("RESULTS", "stored")
    assert profile.name() == "full", "the shipped results are of the full profile"
    monkeypatch.setenv("PROFILE", "CPU")
    assert profile.name() == "cpu"


def test_a_budget_takes_this_profiles_numbers(monkeypatch):
    for name, expected in zip(profile.NAMES, (1, 2, 3), strict=True):
        monkeypatch.setenv("PROFILE", name)
        assert profile.budget(size=(1, 2, 3)).size == expected


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
    monkeypatch.setattr(
        torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: bfloat16 > 1, raising=False
    )  # a flag that lies
    monkeypatch.setattr(profile, "product_seconds", {torch.float32: 1.0, torch.bfloat16: bfloat16}.__getitem__)
    profile.autocast_dtype.cache_clear()
    assert profile.autocast_dtype() == chosen
    profile.autocast_dtype.cache_clear()


def test_settings_override_device_and_number_format(monkeypatch):
    monkeypatch.setenv("DTYPE", "float16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("DEVICE", "cpu")
    profile.autocast_dtype.cache_clear()
    assert (profile.device().type, profile.autocast_dtype()) == ("cpu", torch.float16)
    profile.autocast_dtype.cache_clear()
    monkeypatch.setenv("DTYPE", "half")
    with pytest.raises(ValueError, match="DTYPE='half' is unknown; choose one of"):
        profile.autocast_dtype()


def test_a_product_is_timed_without_touching_the_random_numbers():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert 0 < profile.product_seconds(torch.float32) < 60
    assert torch.equal(before, torch.get_rng_state())
