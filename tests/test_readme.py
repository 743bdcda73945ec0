"""README's numbers are those of data/results, and it names the stand-in."""

import re

import pandas as pd
import pytest

from lib import evaluation, profile, results

README = (profile.ROOT / "README.md").read_text(encoding="utf-8")
COLUMNS = ("bits_per_byte", "perplexity", "chrf", "rouge_l", "synopsis_form", "tags_reflected")
ROWS = {"before": "none", "after, full": "full", "after, LoRA": "lora"}


@pytest.fixture(scope="module")
def shipped():
    return results.load("03_evaluate", profile.DATA / "results")


def test_the_result_table_is_that_of_the_results_file(shipped):
    table = pd.DataFrame(shipped["tables"]["before_after"])
    summary = evaluation.seed_summary(table[table.task == "debian"], COLUMNS)
    summary = summary.set_index(["method", "measure"])
    for label, method in ROWS.items():
        (line,) = re.findall(rf"^\| {label} \| (.*) \|$", README, re.MULTILINE)
        for cell, measure in zip(line.split(" | "), COLUMNS, strict=True):
            shown = [float(x) for x in re.findall(r"-?[\d.]+", cell)]
            row = summary.loc[(method, measure)]
            wanted = [row["mean"], row["low"], row["high"]][: len(shown)]
            digits = len(cell.split()[0].partition(".")[2])
            assert shown == [round(x, digits) for x in wanted], (label, measure)


def test_the_differences_are_those_of_the_results_file(shipped):
    rows = [r for r in shipped["tables"]["significance"] if r["task"] == "debian"]
    assert len(rows) == 4
    for row in rows:
        text = f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        assert text in README
        assert row["low"] * row["high"] > 0, "README says that the interval excludes zero"
        assert row["seeds"] == 3


def test_the_stand_in_is_named_where_it_was_used(shipped):
    if shipped["provenance"]["stand_in"]:
        assert "not of GPT-2" in README
        assert "67.27" in README, "the published row stands beside ours"
