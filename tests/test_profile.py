"""Which profile, its budgets, and where files go."""

import pytest
import torch

from lib import profile, results


@pytest.mark.parametrize("name", ["quick", "FULL"])
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
    monkeypatch.setenv("PROFILE", "cpu")
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
