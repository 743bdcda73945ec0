"""report.md and README.md: every number from a results file, every claim true, every place in the code real."""

from pathlib import Path

import pytest
from sample_project import figure, project, results, write

from lib import __main__ as command
from lib.report import fill

REPORT = {
    "values": {"full.bits": "1.042 [1.038, 1.045]"},
    "tables": {"scores": "| a | b |\n|--|--|\n| 1 | 2 |\n\nTable: Scores.", "figure.curve": "![C.](figures/03_c.png)"},
    "claims": {"full beats before": True},
}
TEXT = Path(__file__).with_name("sample_fill.md").read_text(encoding="utf-8")


@pytest.fixture
def root(tmp_path):
    project(tmp_path, git=False)
    write(tmp_path / "data/results/03_evaluate.json", results("03_evaluate", REPORT))
    write(tmp_path / "lib/packing.py", "def flatten(): ...\n")
    write(tmp_path / "tests/test_x.py", "def test_y(): ...\n")
    figure(tmp_path / "figures/03_c.png")
    write(tmp_path / "report.md", TEXT)
    assert fill.check(tmp_path) == []
    return tmp_path


def change(root, **parts):
    """The results file with some answers changed."""
    report = {kind: named | parts.get(kind, {}) for kind, named in REPORT.items()}
    write(root / "data/results/03_evaluate.json", results("03_evaluate", report))


def test_fill_brings_new_values_tables_and_figures_and_nothing_else(root):
    readme = (root / "README.md").read_text("utf-8")
    write(root / "README.md", f"{readme}\nIt took 13 minutes; 70.4 is published. <!--= 03.full.bits -->x<!--/-->\n")
    change(root, values={"full.bits": "0.900"}, tables={"scores": "| c |\n|--|\n| 3 |\n\nTable: C."})
    assert len(fill.check(root)) == 3 and fill.fill(root) == fill.check(root) == []
    text = (root / "report.md").read_text("utf-8")
    assert "needs <!--= 03.full.bits -->0.900<!--/--> bits." in text and "| 3 |\n\nTable 1. C.\n\n<!-- end" in text
    assert "Figure 1. C." in text and "Table: code" in text and "Table 2. By hand." in text
    assert text.replace("0.900", "1.042 [1.038, 1.045]").splitlines()[:4] == TEXT.splitlines()[:4]
    write(root / "README.md", f"{readme}\nIt needs 1.042 bits.\n")
    (line,) = fill.check(root)
    assert line.startswith("README.md, line ") and "1.042 was typed" in line


def test_a_changed_value_and_a_claim_turned_false_are_named_with_their_lines(root):
    change(root, values={"full.bits": "1.1"}, claims={"full beats before": False})
    stale, false = fill.check(root)
    assert stale.startswith("report.md, line 3: `03.full.bits` is not what data/results gives")
    why = "the claim `03.full beats before` does not hold any more: rewrite the sentence behind it."
    assert false == f"report.md, line 4: {why}"
    assert fill.fill(root) == [false]


BROKEN = {
    "typed": ("helps.", "helps by 12 %.", "line 4: 12 was typed"),
    "typed in a formula": ("x_1 + 2", "x_1 + 22", "22 was typed"),
    "an unknown value": ("03.full.bits", "03.full.bit", "no results file answers `03.full.bit`: run notebook 03"),
    "an open mark": ("1.045]<!--/-->", "1.045]", "line 3: `<!--= 03.full.bits -->` is a broken mark"),
    "edited by hand": ("| 1 | 2 |", "| 1 | 3 |", "line 7: `03.scores` is not what data/results gives"),
    "a number of a table that went": ("# 03.scores -->", "# 03.score -->", "no figure or table `03.score` stands here"),
    "a number typed": ("-->Table 1<", "-->Table 2<", "line 5: `03.scores` is not what data/results gives"),
    "a caption's number": ("Table 2. By", "Table 1. By", "`a caption` is not what"),
    "a mark at a line's start": ("As said\nbefore, ", "As said\n", "line 4: a line may not begin with a mark"),
    "the number of a table by hand": ("-->Table 2<", "-->Table 1<", "`own.hand` is not what data/results gives"),
    "a value in one": ("By hand.", "By hand <!--= 03.full.bits -->1.1<!--/-->.", "`03.full.bits` is not what"),
    "a gone function": ("lib.packing.flatten", "lib.packing.flat", "lib/packing.py has no `flat`"),
    "a gone test": ("::test_y", "::test_z", "tests/test_x.py has no `test_z`"),
    "a gone file": ("section 5", "[the code](lib/nothing.py)", "lib/nothing.py is missing"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_is_named_with_its_line(root, name):
    old, new, said = BROKEN[name]
    write(root / "report.md", TEXT.replace(old, new, 1))
    wrong = fill.check(root)
    assert any(said in line and line.startswith("report.md, line ") for line in wrong), wrong


def test_a_missing_figure_or_results_file_is_told_by_its_notebook(root):
    (root / "figures/03_c.png").unlink()
    assert ["figures/03_c.png is missing: run its notebook." in line for line in fill.check(root)] == [True]
    (root / "data/results/03_evaluate.json").unlink()
    assert sum("run notebook 03" in line for line in fill.check(root)) == 4


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"notebook": "03"}', '{"provenance": {"seeds": [0]}}'])
def test_a_damaged_results_file_and_a_report_that_is_not_utf8_are_one_sentence(root, damage):
    write(root / "data/results/03_evaluate.json", damage)
    with pytest.raises(ValueError, match=r"03_evaluate.json is damaged .*: run `python -m lib run 03` again"):
        fill.check(root)
    (root / "data/results/03_evaluate.json").rename(root / "data/results/03_evaluate-LAPTOP-1A2B.json")
    assert fill.answers(root)["values"] == {}  # a copy that a cloud folder made is not read
    (root / "report.md").write_bytes("红豆".encode("gbk"))
    with pytest.raises(ValueError, match=r"report.md is not UTF-8 \(byte 0\): save it as UTF-8"):
        fill.check(root)


def test_the_command_says_whether_the_shipped_files_agree_with_the_results(root, monkeypatch, capsys):
    assert command.main(["report", "--check"]) == 0 and "agree with data/results" in capsys.readouterr().out
    write(root / "report.md", TEXT.replace("helps.", "helps by 12 %."))
    found = fill.check(root)
    monkeypatch.setattr(fill, "check", lambda: found)
    assert command.main(["report", "--check"]) == 1 and "line 4: 12 was typed" in capsys.readouterr().out
