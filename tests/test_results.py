"""What a notebook hands on: rows as they were measured, written whole or not at all, read back under RESULTS=stored."""

import errno
import json
import math
import os
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from lib import profile, results
from lib.results import Results

ROWS = [{"seed": 0, "x": 1.5, "name": "a"}, {"seed": 1, "x": math.nan, "name": None}]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FAST_OUTPUT", str(tmp_path))
    return tmp_path


def notebook(measure) -> Results:
    """A small notebook's run, from the first cell to the last, which alone writes."""
    kept = Results("99_test", seeds=(0, 1))
    table = kept.table("t", measure)
    kept.value("mean", results.number(table["x"].mean()))
    kept.claim("x is large", table["x"].mean() > 1)
    kept.markdown("t", ["seed", "x"], table[["seed", "x"]].to_numpy(), "The rows.")
    kept.markdown("u", ["seed", "x"], [], "No rows.")
    kept.figure(plt.figure(), "99_x", "A [figure].", tokens=1_000)
    kept.save(data={"debian": "abc"})
    return kept


def test_rows_are_kept_with_nan_as_null_and_the_report_gets_values_claims_tables_and_figures(folder):
    notebook(lambda: pd.DataFrame(ROWS))
    value = results.load("99_test")
    assert value["tables"] == {"t": [ROWS[0], {"seed": 1, "x": None, "name": None}]}
    made, report = value["provenance"], value["report"]
    assert made["seeds"] == [0, 1] and made["data"] == {"debian": "abc"} and made["wall_seconds"] >= 0
    assert {"base_model", "stand_in", "profile", "device", "dtype", "git_commit", "created", "versions"} <= set(made)
    assert report["values"] == {"mean": "1.500"} and report["claims"] == {"x is large": True}
    assert report["tables"]["t"].endswith("Table: The rows. Seeds 0, 1.")
    assert report["tables"]["u"].startswith("Not measured yet")
    figure = "![A (figure). Seeds 0, 1; 1,000 training tokens.](figures/99_x.png)"
    assert report["tables"]["figure.x"] == figure and (folder / "figures" / "99_x.png").is_file()


def test_stored_results_are_read_back_redrawn_and_never_measured(folder, monkeypatch):
    measured = notebook(lambda: ROWS)
    first = results.load("99_test")
    monkeypatch.setenv("RESULTS", "stored")
    (folder / "figures" / "99_x.svg").unlink()
    refuse = partial(pytest.fail, "measured")
    stored = notebook(refuse)
    Results("99_test", base=SimpleNamespace(name="other"))  # to redraw completes nothing
    assert results.load("99_test") == first and (folder / "figures" / "99_x.svg").is_file()
    pd.testing.assert_frame_equal(stored.table("t", refuse), measured.table("t", lambda: ROWS))
    assert stored.table("u", refuse, optional=True).empty and "u" not in stored.tables
    with pytest.raises(ValueError, match="has no table 'u': set RESULTS=missing"):
        stored.table("u", refuse)
    monkeypatch.setenv("RESULTS", "missing")
    more = notebook(refuse)
    assert "tables_made" not in more.provenance()
    with pytest.raises(ValueError, match="was measured on None, not other: measure all of it, with --profile fast and"):
        Results("99_test", base=SimpleNamespace(name="other"))
    more.table("u", lambda: ROWS[:1])
    more.save()
    new = results.load("99_test")
    assert list(new["provenance"].pop("tables_made")) == ["u"] and new["tables"].pop("u") == first["tables"]["t"][:1]
    assert new == first, "what was there stays as it was measured"
    monkeypatch.setenv("RESULTS", "t,other")
    anew = notebook(lambda: ROWS[1:])
    assert list(anew.provenance()["tables_made"]) == ["u", "t"] and anew.tables["t"] == first["tables"]["t"][1:]
    monkeypatch.setenv("RESULTS", "u,t")
    assert "tables_made" not in notebook(lambda: ROWS).provenance(), "all were named"
    monkeypatch.setenv("RESULTS", "missing")
    more.table("v", list)
    more.save()
    assert len(notebook(refuse).table("v", lambda: ROWS)) == 2, "an empty table is missing"
    monkeypatch.setenv("PROFILE", "cpu")
    monkeypatch.setattr(profile, "kept_root", lambda: folder)
    with pytest.raises(ValueError, match="was measured with PROFILE=fast: set it beside RESULTS"):
        Results("99_test")


def test_forms_of_numbers():
    assert results.number(1234.5678, 1) == "1,234.6" and results.number(math.nan) == "-"
    assert results.interval([1.0, 2.0, 3.0], 2) == "2.00 [-0.48, 4.48]" and results.interval([1.0]) == "1.000"
    assert results.interval([0.5, 0.5, 0.5], 1, sign=True) == "+0.5 [+0.5, +0.5]"
    percent = [88, 91, 97]
    assert results.interval(percent, 0) == "92 [81, 103]" and results.interval(percent, 0, top=100) == "92 [71, 98]"
    assert [results.shown(d) for d in ([1, 1.1, 0.9], [-1, -1.1, -0.9], [1, -1, 0], [5])] == [1, -1, 0, 0]
    barely = [1.0, 1.6, 0.9, 1.4, 0.1]  # p = 0.018 alone
    assert results.shown(barely) == 1 and results.shown(dict.fromkeys(range(3), barely)) == {0: 0, 1: 0, 2: 0}
    family = {"clear": [1, 1.01, 0.99], "barely": barely, "same": [0, 0, 0], "one": [5], "none": []}
    assert results.shown(family) == {"clear": 1, "barely": 0, "same": 0, "one": 0, "none": 0} and not results.shown({})
    assert results.listed(["a", "b", "c"]) == "a, b and c" and results.listed(["a"]) == "a"
    assert results.listed([]) == "none"
    assert results.markdown_table(["a", "b"], [["x|y", 1]]).splitlines()[2] == r"| x\|y | 1 |"


def test_a_full_disk_leaves_the_previous_file(tmp_path, monkeypatch):
    path = tmp_path / "r.json"
    results.write_json(path, {"a": 1})
    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match=r"r\.json was not written \(No space left on device\); free space"):
        results.write_json(path, {"a": 2})
    assert json.loads(path.read_text("utf-8")) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"], "a part file was left behind"


@pytest.mark.parametrize("times", [3, 99])
def test_a_file_that_another_program_holds_is_tried_for_two_seconds(times, tmp_path, monkeypatch, capsys):
    path, pauses = tmp_path / "r.docx", []
    path.write_bytes(b"old")

    def held(source, target):
        if len(pauses) < times:
            raise PermissionError(errno.EACCES, "used by another process")
        Path(source).rename(target)

    monkeypatch.setattr(profile.time, "sleep", pauses.append)
    monkeypatch.setattr(os, "replace", held)
    if times == 3:
        results.write_bytes(path, b"new")
    else:
        with pytest.raises(PermissionError, match=r"r\.docx can't be replaced: close the program that has it open"):
            results.write_bytes(path, b"new")
        assert sum(pauses) == pytest.approx(2)
    assert path.read_bytes() == (b"new" if times == 3 else b"old")
    assert [p.name for p in tmp_path.iterdir()] == ["r.docx"], "a part file was left behind"
    monkeypatch.setattr(profile.shutil, "rmtree", lambda _: held(path, path))
    profile.remove(tmp_path, needed=False)
    assert ("can't be removed: close the program" in capsys.readouterr().out) == (times == 99)


def test_figures_are_replaced_with_the_results_or_not_at_all(folder, monkeypatch):
    notebook(lambda: ROWS)
    before = {path: path.read_bytes() for path in folder.rglob("99_*")}
    other = plt.subplots()[0]
    monkeypatch.setattr(plt, "figure", lambda: other)
    monkeypatch.delattr(results, "write_json")  # comes after the figures
    with pytest.raises(NameError):
        notebook(lambda: ROWS)
    assert len(before) == 3 and {path: path.read_bytes() for path in folder.rglob("99_*")} == before


def test_shipped_results_follow_the_contract_and_no_value_reads_nan(tmp_path):
    for path in sorted((profile.DATA / "results").glob("*.json")):
        value = results.load(path.stem, path.parent)
        assert value["notebook"] == path.stem and value["provenance"]["profile"] == "full"
        assert all(not isinstance(x, dict | list) for t in value["tables"].values() for row in t for x in row.values())
        # a number that went missing on its way would be filled into the report, and its check would agree
        assert not re.search(r"\bnan\b", str(value["report"]["values"])), path.name
    with pytest.raises(FileNotFoundError, match=r"98_none\.json is missing: run `python -m lib run 98`"):
        results.load("98_none", tmp_path)
    (tmp_path / "98_none.json").write_text('{"notebook": ', "utf-8")
    with pytest.raises(ValueError, match="is damaged"):
        results.load("98_none", tmp_path)


def test_what_was_made_under_the_same_settings_is_read_back(folder):
    made = iter([{"x": 1.5, "y": [math.nan]}, {"x": 2.5}])
    kept = [results.kept(folder / "run" / "measured", key, lambda: next(made)) for key in ("a", "a", "b")]
    assert kept == [{"x": 1.5, "y": [None]}, {"x": 1.5, "y": [None]}, {"x": 2.5}]
