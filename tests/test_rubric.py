"""Every question of the rubric: satisfied by the sample project, and open as soon as its point is taken away."""

import json
import re

import pytest
from sample_project import README, REPORT, project, write

from lib import profile
from lib.__main__ import main
from lib.report import rubric
from lib.report.rubric import GAP, NOTE, OK


@pytest.fixture
def root(tmp_path):
    return project(tmp_path / "项目", git=False)


def status(root, question, midterm=False):
    (found,) = [(kind, text) for kind, asked, text in rubric.check(midterm, root) if asked.startswith(question)]
    return found


def without(heading: str) -> str:
    """The report without the text below a heading."""
    text, count = re.subn(rf"^({re.escape(heading)})$.*?(?=^#|\Z)", r"\1\n\n", REPORT, flags=re.M | re.S)
    assert count == 1
    return text


def test_a_finished_project_has_no_gaps(root):
    for midterm in (False, True):
        answers = rubric.check(midterm, root)
        assert rubric.gaps(answers) == [] and rubric.show(answers).endswith("Nothing is missing.")
        assert all(text and question for _, question, text in answers)
    assert status(root, "Members named") == (OK, "report.md:6: 王小明 (Wang Xiaoming), Li Hua")
    assert status(root, "At least two explorations")[1].startswith("2: 6.1 Token encodings, 6.2")


MEMBERS = "| Li Hua | encodings, positions, sections 6.1 and 6.2 | 50 % |\n"
TAKEN_AWAY = {
    "placeholder for a name": (REPORT.replace("| Li Hua", "| [Name of member 2]"), "Members named", "Name of member 2"),
    "Chinese placeholder": (REPORT.replace("| Li Hua", "| [姓名]"), "Members named", "姓名"),
    "one member": (REPORT.replace(MEMBERS, ""), "Members named", "1 members"),
    "four members": (REPORT.replace(MEMBERS, MEMBERS * 3), "Members named", "4 members"),
    "no team": (without("## 1 Team and division of labour"), "Members named", "0 members"),
    "no division": (REPORT.replace("encodings, positions, sections 6.1 and 6.2 | 50 %", "|"), "Division of", "Li Hua"),
    "no structure": (without("### Structure"), "The model's structure", "has 0 words"),
    "structure without attention": (re.sub("(?i)attention", "x", REPORT), "The model's", "speak of attention"),
    "no generation": (without("### How it generates"), "The principle of generation", "has 0 words"),
    "no prior work": (without("## 3 Prior work"), "Prior work", "has 0 words"),
    "no dataset": (without("### The dataset"), "The dataset", "has 0 words"),
    "no processing": (without("### Processing"), "Data processing", "has 0 words"),
    "no after": (re.sub(r"^\| after.*\n", "", REPORT, flags=re.M), "Before against after", "no row 'after'"),
    "no before": (re.sub(r"^\| before.*\n", "", REPORT, flags=re.M), "Before against after", "no row 'before'"),
    "one exploration": (without("### 6.2 Position encodings"), "At least two", "1 complete, two are asked for; report"),
    "no principle": (REPORT.replace("**Principle.** RoPE", "RoPE"), "At least two", "encodings, has no principle"),
    "no result": (re.sub(r"\*\*Result\.\*\* ALiBi.*", "", REPORT), "At least two", "has no result"),
    "an empty result": (re.sub(r"(\*\*Result\.\*\*) ALiBi.*", r"\1", REPORT), "At least two", "has no result"),
    "no sources": (without("## 8 Sources"), "Sources", "has 0 words"),
    "the stand-in unnamed": (REPORT.replace("SmolLM2-135M-Instruct", "GPT-2"), "GPT-2 117M", "the stand-in SmolLM2"),
    "another figure": (REPORT.replace("](figures/03_", "](figures/09_"), "Figures", "shows figures/09_before_after"),
    "a TODO": (REPORT.replace("One dataset,", "TODO"), "No placeholder", ": TODO"),
    "French": ("# Rapport\n\n" + "ё " * 200, "Report language", "has 1 words"),
}


@pytest.mark.parametrize("name", TAKEN_AWAY)
def test_what_is_taken_away_is_missed(root, name):
    text, question, said = TAKEN_AWAY[name]
    assert text != REPORT
    write(root / "report.md", text)
    found, answer = status(root, question)
    assert found == GAP and said in answer, answer
    assert rubric.gaps(rubric.check(root=root))


def test_the_line_of_a_placeholder_is_that_of_the_file(root):
    write(root / "report.md", "```\nTODO in code\n```\n<!--\nTODO in a comment -->\n" + REPORT + "TBD\n")
    line = len((root / "report.md").read_text("utf-8").splitlines())
    assert status(root, "No placeholder")[1] == f"report.md:{line}: TBD"


def test_brackets_that_are_no_placeholders(root):
    text = "$[A, B]$ `[Name]` [Link](lib/x.py) ![Alt](figures/03_before_after.png) [1.0, 2.0] [^Note] [...]\n\n"
    filled = "see <!--= 03.a -->[Verse 1]<!--/-->\n\n<!-- begin 03.b -->\n> [Chorus]\n<!-- end 03.b -->\n"
    write(root / "report.md", REPORT + text + filled)
    assert status(root, "No placeholder")[0] == OK
    write(root / "report.md", REPORT + text + filled + "[One sentence on who reviewed what]\n")
    assert status(root, "No placeholder")[1].endswith(": [One sentence on who reviewed what]")


def test_numbers_of_a_filled_report_are_compared_with_the_results(root):
    assert status(root, "Every number")[0] == NOTE  # written by hand, no marks
    write(root / "report.md", f"{REPORT}\nIt has <!--= 01.size -->124<!--/--> parameters.\n")
    found, said = status(root, "Every number")
    assert found == GAP and said.startswith("report.md, line")


def test_members_may_stand_in_a_list(root):
    table = re.search(r"^\| member.*?(?=\n\n)", REPORT, re.M | re.S)[0]
    listed = "- **李雷**：数据处理与微调\n- Han Mei: explorations 6.1 and 6.2"
    write(root / "report.md", REPORT.replace(table, listed))
    assert status(root, "Members named") == (OK, "report.md:6: 李雷, Han Mei")
    assert status(root, "Division")[0] == OK


def test_a_chinese_report(root):
    text = REPORT.replace("## 1 Team and division of labour", "## 1 小组成员与分工")
    write(root / "report.md", text + "我们微调了模型并比较前后。" * 300)
    assert status(root, "Members named")[0] == OK
    assert status(root, "Report language")[1].startswith("Chinese")


@pytest.mark.parametrize(
    "number, question",
    [("01", "Prior work"), ("03", "Before against"), ("02", "The code runs"), ("04", "At least two")],
)
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_missing_and_damaged_results(root, number, question, damage):
    (path,) = (root / "data/results").glob(f"{number}_*.json")
    path.unlink() if damage == "gone" else path.write_text(path.read_text("utf-8")[:-20], "utf-8")
    found, text = status(root, question)
    assert found == GAP and "python -m lib run" in text


def test_a_notebook_not_executed_failed_or_gone(root):
    path = root / "notebooks/02_finetune.ipynb"
    book = json.loads(path.read_text("utf-8"))
    book["cells"][1]["outputs"] = [{"output_type": "error", "ename": "E", "evalue": "", "traceback": []}]
    write(path, json.dumps(book))
    assert "an error" in status(root, "The code runs")[1]
    book["cells"][1]["outputs"] = []
    write(path, json.dumps(book))
    assert "no outputs" in status(root, "The code runs", midterm=True)[1]
    path.write_text("{", "utf-8")
    assert "is damaged" in status(root, "The code runs")[1]
    path.unlink()
    assert status(root, "The code runs") == (GAP, "notebook 02 was not executed: `python -m lib run 02`")


def test_an_exploration_not_run_is_a_note_beside_two_complete_ones(root):
    more = REPORT[REPORT.index("### 6.2") : REPORT.index("## 7")].replace("6.2 Position", "6.3 More")
    write(root / "report.md", REPORT.replace("## 7 Limits", more + "## 7 Limits"))
    found, text = status(root, "At least two")
    assert found == NOTE and "6.3 More encodings has no results: `python -m lib run 06`" in text


def test_the_card_is_asked_for(root):
    write(root / "data/README.md", "# Data\n\nSource: Debian.\n")
    assert status(root, "The dataset") == (GAP, "data/README.md, the card, has no licence")


def test_gpt2_itself_needs_no_note(root):
    for path in (root / "data/results").iterdir():
        write(path, path.read_text("utf-8").replace('"stand_in": true', '"stand_in": false'))
    assert status(root, "GPT-2 117M")[0] == OK


def test_the_mid_term_report_shows_commands_and_a_sample(root):
    write(root / "README.md", README.replace("pip install", "conda"))
    assert status(root, "How to run", midterm=True)[0] == GAP
    write(root / "README.md", README.replace("```\nThis module is a part of the perl module.\n```", ""))
    assert "no sample" in status(root, "How to run", midterm=True)[1]


def test_no_report_is_one_sentence_and_readme_needs_none(root):
    (root / "report.md").unlink()
    ((kind, _, text),) = rubric.check(root=root)
    assert kind == GAP and "report.md is missing or empty" in text
    assert rubric.gaps(rubric.check(True, root)) == []


def test_the_package_is_named_with_its_deadline(root):
    assert "due 9 June (week 16): not built: `python -m lib pack`" in status(root, "The package")[1]
    write(root / "build/midterm.zip", "zip")
    assert "due 19 May (week 13): build/midterm.zip" in status(root, "The package", midterm=True)[1]


def test_the_command_says_by_its_exit_status_whether_something_is_missing(root, monkeypatch, capsys):
    ask = rubric.check
    monkeypatch.setattr(rubric, "check", lambda midterm: ask(midterm, root))
    assert main(["check"]) == 0
    write(root / "report.md", TAKEN_AWAY["a TODO"][0])
    assert main(["check"]) == 1
    assert "MISSING  No placeholder left" in capsys.readouterr().out


def test_this_readme_is_a_mid_term_report():
    assert rubric.gaps(rubric.check(True, profile.ROOT)) == []


def test_sections_ignore_code_and_nest():
    found = rubric.sections("# A\n```\n# no\n```\n## B\ntext\n### C\nmore\n## D\n", "x")
    assert [(s.title, s.at) for s in found] == [("A", "x:1"), ("B", "x:5"), ("C", "x:7"), ("D", "x:9")]
    assert found[1].text == "\ntext\n### C\nmore\n"
