import errno
import json
import os

import pandas as pd
import pytest

from lib import profile, results


def test_save_and_load_keep_rows_flat_and_nan_as_null():
    path = results.save("99_test", {"t": pd.DataFrame([{"seed": 0, "x": float("nan")}]), "u": [{"a": 1}]})
    assert str(profile.ROOT) not in str(path), "fast must not touch the checkout's results"
    value = results.load("99_test")
    assert value["tables"] == {"t": [{"seed": 0, "x": None}], "u": [{"a": 1}]}
    wanted = {
        "base_model",
        "stand_in",
        "parameters",
        "profile",
        "seeds",
        "device",
        "dtype",
        "git_commit",
        "created",
        "wall_seconds",
        "versions",
        "data",
    }
    assert wanted == set(value["provenance"])


def test_a_nested_row_is_refused():
    with pytest.raises(ValueError, match="'runs', row 0: 'history' is nested"):
        results.save("99_test", {"runs": [{"history": [1, 2]}]})


def test_a_full_disk_leaves_the_previous_file(tmp_path, monkeypatch):
    path = tmp_path / "r.json"
    results.write_json(path, {"a": 1})

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"r\.json was not written \(No space left on device\); free space"):
        results.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"], "a part file was left behind"


def test_no_write_permission_is_one_sentence():
    with pytest.raises(OSError, match="was not written"):
        results.write_json(profile.ROOT / "requirements.txt" / "r.json", {})


def test_missing_and_damaged_results_name_the_way_out(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"98_none\.json is missing: run `python -m lib run 98`"):
        results.load("98_none", tmp_path)
    (tmp_path / "98_none.json").write_text('{"notebook": ')
    with pytest.raises(ValueError, match="is damaged"):
        results.load("98_none", tmp_path)
    (tmp_path / "98_none.json").write_text('{"notebook": "98_none", "tables": {}}')
    with pytest.raises(ValueError, match="has no 'provenance'"):
        results.load("98_none", tmp_path)


@pytest.mark.parametrize("name", ["quick", "FULL"])
def test_an_unknown_profile_lists_the_known(monkeypatch, name):
    monkeypatch.setenv("PROFILE", name)
    with pytest.raises(ValueError, match="choose one of fast, cpu, full"):
        profile.current()


def test_shipped_results_follow_the_contract():
    for path in sorted((profile.DATA / "results").glob("*.json")):
        value = results.load(path.stem, path.parent)
        assert value["notebook"] == path.stem
        assert value["provenance"]["profile"] == "full", f"{path.name} is not of the full profile"
        for table in value["tables"].values():
            assert all(not isinstance(x, dict | list) for row in table for x in row.values())
