"""Generated rows, archives and markers; and that the fuzzers find what is wrong."""

import importlib.util

import pytest

from lib.explore import fuzz


def test_rows_through_the_loader():
    injected, lost = fuzz.fuzz_rows(800)
    assert injected >= 800 and lost == 0


def test_damaged_archives_are_refused():
    assert fuzz.fuzz_archives(100) == (100, 0)


def test_markers_or_the_hook_for_them():
    there = importlib.util.find_spec("lib.report.report_text") is not None
    assert fuzz.fuzz_markers(100) == ((100, 0) if there else (0, 0))


def test_a_loader_that_loses_a_row_is_found(monkeypatch, capsys):
    real = fuzz.load_task

    def lossy(path):
        task = real(path)
        task.train[:] = [e for e in task.train if "x" not in e.target]
        return task

    monkeypatch.setattr(fuzz, "load_task", lossy)
    assert fuzz.fuzz_rows(800)[1] == 1
    assert "AssertionError" in capsys.readouterr().out


def test_a_loader_that_fails_without_a_sentence_is_found(monkeypatch):
    def broken(path):
        raise KeyError("prompt")

    monkeypatch.setattr(fuzz, "load_task", broken)
    assert fuzz.fuzz_rows(80)[1] == 2


@pytest.mark.parametrize(
    ("how", "wanted"),
    [("flip", b"abbd"), ("cut", b"ab"), ("insert", b"ab\x01cd"), ("delete", b"abd"), ("garbage", b"\x01")],
)
def test_each_damage(how, wanted):
    assert fuzz.damaged(b"abcd", how, 0.5, b"\x01") == wanted
