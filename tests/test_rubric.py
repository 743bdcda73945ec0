"""Every question of the rubric: satisfied by the sample project, and open as soon as its point is taken away."""

import re

import pytest
from sample_project import REPORT, project, write

from lib import profile
from lib.__main__ import main
from lib.report import rubric


@pytest.fixture
def root(tmp_path):
    return project(tmp_path / "项目", git=False)


def status(root, question, midterm=False):
    (found,) = [(kind, text) for kind, asked, text in rubric.check(midterm, root) if asked.startswith(question)]
    return found


def test_a_finished_project_has_no_gaps(root):
    for midterm in (False, True):
        assert rubric.gaps(rubric.check(midterm, root)) == []
    assert status(root, "Report language")[0] == rubric.OK and "Abstract " in status(root, "Report language")[1]
    assert status(root, "Members named") == (rubric.OK, "report.md:24: 王小明 (Wang Xiaoming), Li Hua")
    assert status(root, "At least two explorations")[1].startswith("2: 6.1 Token encodings, 6.2")
    write(root / "report.md", REPORT.replace("## 摘要", f"{'word ' * 201}\n\n## 摘要"))
    assert status(root, "Report language")[0] == "note"


def without(heading: str) -> str:
    """The report without the text below a heading."""
    return re.sub(rf"^({re.escape(heading)})$.*?(?=^#|\Z)", r"\1\n\n", REPORT, flags=re.M | re.S)


TAKEN_AWAY = {
    "placeholder for a name": (REPORT.replace("| Li Hua", "| [Name of member 2]"), "Members named", "Name of member 2"),
    "no division": (REPORT.replace("encodings, positions, sections 6.1 and 6.2 | 50 %", "|"), "Division of", "Li Hua"),
    "structure without attention": (re.sub("(?i)attention", "x", REPORT), "The model's", "speak of attention"),
    "no dataset": (without("### The dataset"), "The dataset", "has 0 words"),
    "no after": (re.sub(r"^\| after.*\n", "", REPORT, flags=re.M), "Before against after", "no row 'after'"),
    "one exploration": (without("### 6.2 Position encodings"), "At least two", "1 complete, two are asked for; report"),
    "an appendix alone": (REPORT.replace("# A.1", "# A.3"), "At least two", "A.3 Tokens, belongs to no section of 6"),
    "no Chinese": (without("## 摘要"), "The abstract in", "has 0 words"),
    "no principle": (REPORT.replace("**Principle.** RoPE", "RoPE"), "At least two", "encodings, has no principle"),
    "an empty result": (re.sub(r"(\*\*Result\.\*\*) ALiBi.*", r"\1", REPORT), "At least two", "has no result"),
    "the stand-in unnamed": (REPORT.replace("SmolLM2-135M-Instruct", "GPT-2"), "GPT-2 117M", "the stand-in SmolLM2"),
    "another figure": (REPORT.replace("](figures/03_", "](figures/09_"), "Figures", "shows figures/09_before_after"),
    "a TODO": (REPORT.replace("One dataset,", "TODO"), "No placeholder", ": TODO"),
    "an unknown mark": (REPORT + "\nsee <!--= 01.size -->124<!--/-->\n", "Every number", "report.md, line"),
    "no report": ("", "a report", "report.md is missing or empty"),
}


@pytest.mark.parametrize("name", TAKEN_AWAY)
def test_what_is_taken_away_from_the_report_is_missed(root, name):
    text, question, said = TAKEN_AWAY[name]
    write(root / "report.md", text)
    found, answer = status(root, question)
    assert found == rubric.GAP and said in answer, answer
    assert rubric.gaps(rubric.check(root=root)) and not rubric.gaps(rubric.check(midterm=True, root=root))


RUN = "`python -m lib run"
FILES = [  # file, what of it (None: all) is replaced by what, the question that misses it, what is said
    ("data/results/01_load_and_generate.json", None, "", "The code runs", RUN),
    ("data/results/03_evaluate.json", None, "{", "Before against", RUN),
    ("data/results/03_evaluate.json", '"before"', '"after"', "Before against", RUN),
    ("notebooks/02_finetune.ipynb", '"stream"', '"error"', "The code runs", "has an error"),
    ("notebooks/02_finetune.ipynb", '"outputs"', '"nothing"', "The code runs", "has no outputs"),
    ("notebooks/02_finetune.ipynb", None, "{", "The code runs", "is damaged: `python -m lib run 02`"),
    ("data/README.md", None, "# Data\n\nSource: Debian.\n", "The dataset", "the card, has no licence"),
    ("README.md", "pip install", "conda", "How to run", "does not show `pip install"),
    ("README.md", "This module", "python -m lib", "How to run", "no sample"),
]


@pytest.mark.parametrize("name, old, new, question, said", FILES)
def test_what_is_taken_away_from_other_files_is_missed(root, name, old, new, question, said):
    write(root / name, (root / name).read_text("utf-8").replace(old, new) if old else new)
    found, answer = status(root, question, midterm=name == "README.md")
    assert found == rubric.GAP and said in answer


def test_the_line_of_a_placeholder_is_that_of_the_file_and_brackets_may_be_innocent(root):
    text = "```\nTODO in code\n# no heading\n```\n<!--\nTODO in a comment -->\n" + REPORT
    text += "$[A, B]$ `[Name]` [Link](lib/x.py) ![Alt](figures/03_before_after.png) [1.0, 2.0] [^Note] [...]\n\n"
    text += "see <!--= 03.a -->[Verse 1]<!--/-->\n\n<!-- begin 03.b -->\n> [Chorus]\n<!-- end 03.b -->\n"
    write(root / "report.md", text)
    assert status(root, "No placeholder")[0] == rubric.OK
    write(root / "report.md", text + "[One sentence on who reviewed what]\n")
    line = len(text.splitlines()) + 1
    assert status(root, "No placeholder")[1] == f"report.md:{line}: [One sentence on who reviewed what]"
    text = text.replace("### Team and division of labour", "### 小组成员与分工")
    write(root / "report.md", text + "我们微调了模型并比较。" * 400)
    assert status(root, "Members named")[0] == rubric.OK and status(root, "Report language")[1].endswith("in Chinese")


def test_the_command_says_by_its_exit_status_whether_something_is_missing(root, monkeypatch, capsys):
    ask = rubric.check
    monkeypatch.setattr(rubric, "check", lambda midterm: ask(midterm, root))
    assert main(["check"]) == 0 and capsys.readouterr().out.endswith("\nNothing is missing.\n")
    write(root / "report.md", TAKEN_AWAY["a TODO"][0])
    assert main(["check"]) == 1 and "MISSING  No placeholder left" in capsys.readouterr().out
    assert rubric.gaps(ask(True, profile.ROOT)) == []  # this README is a mid-term report
