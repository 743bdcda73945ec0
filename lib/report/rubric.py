"""The assignment's questions to a project, for lib.report.check: one function each, whose docstring is the question.

The rubric is the course's text of 26 April 2024. A length asked for here is a floor for "described at all";
whether a text is good, people decide.
"""

import json
import re
from collections.abc import Callable

from lib.report import blocks as report
from lib.report import outline
from lib.report.document import way_back
from lib.report.outline import find, words
from lib.report.project import FILLED, GAP, NOTE, OK, PLACEHOLDER, Found, Project, described, readable, rows_of

MEMBERS = (2, 3)
PARTS = {
    "principle": r"principle|原理",
    "change": r"change|改进|改动|方法",
    "experiment": r"experiment|实验(?!结果)",
    "result": r"results?|结果|结论",
}
Question = Callable[[Project], Found]


# --- the questions; the docstring is the question as it is shown


def members_named(project: Project) -> Found:
    """Members named (2 or 3)."""
    section = find(project.sections, "team", "小组", "成员", "分工")
    if not section:
        return GAP, f"no section on the team in {project.name}"
    names = [row[0] for row in rows_of(section.text)]
    real = [name for name in names if name and not PLACEHOLDER.search(name)]
    if left := [name for name in names if name not in real]:
        return GAP, f"{project.at(section)}: {left[0] or 'an empty cell'} is no name yet"
    if not MEMBERS[0] <= len(real) <= MEMBERS[1]:
        return (GAP, f"{project.at(section)}: {len(real)} members, the course asks for 2 or 3, a table row each")
    return OK, f"{project.at(section)}: {', '.join(real)}"


def division_given(project: Project) -> Found:
    """Division of labour given."""
    section = find(project.sections, "team", "小组", "成员", "分工")
    rows = list(rows_of(section.text)) if section else []
    if not rows:
        return GAP, f"{project.name} says nowhere who did what: one table row per member"
    for row in rows:
        part = " ".join(row[1:])
        if words(part) < 2 or PLACEHOLDER.search(part):
            return (GAP, f"{project.at(section)}: what {row[0] or 'a member'} did is not said ({part or 'empty'})")
    return OK, f"{project.at(section)}: {len(rows)} members"


def structure(project: Project) -> Found:
    """The model's structure, in detail."""
    about = (r"attention|注意力", r"embedding|嵌入", r"MLP|feed-forward|前馈", r"normali[sz]ation|layernorm|归一化")
    return described(project, 60, ("^structure|结构",), *about)


def generation(project: Project) -> Found:
    """The principle of generation."""
    about = (r"logits?|probabilit|概率", r"sampl|top-?[kp]|采样|解码", r"token|词元")
    return described(project, 60, ("how it generates|generation", "生成"), *about)


def prior_work(project: Project) -> Found:
    """Prior work and what was verified first."""
    status, text = described(project, 60, ("prior work|related work", "调研", "相关工作"))
    if status == OK and not project.results("01"):
        return (GAP, "results of notebook 01, loading and generating, are missing: `python -m lib run 01`")
    return status, text


def dataset(project: Project) -> Found:
    """The dataset introduced, with its card."""
    status, text = described(project, 40, (r"\bdataset\b", "^4 data", "数据集"), "train|训练")
    if status == GAP:
        return status, text
    card = project.root / "data" / "README.md"
    written = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    for word in ("source|来源", "licence|license|许可"):
        if not re.search(word, written, re.IGNORECASE):
            return (GAP, f"data/README.md, the card, {'has no ' + readable(word) if written else 'is missing'}")
    return OK, f"{text}; card: data/README.md"


def processing(project: Project) -> Found:
    """Data processing explained."""
    return described(project, 30, (r"processing|cleaning", "处理"))


def before_after(project: Project) -> Found:
    """Before against after fine-tuning."""
    section = find(project.sections[1:], "before and after|before/after", "微调前后", "对比")
    if not section:
        return GAP, f"no section called 'before and after' in {project.name}"
    rows = [row[0].lower() for row in rows_of(section.text)]
    for stage, pattern in (("before", "before|前"), ("after", "after|后")):
        if not any(re.search(pattern, row) for row in rows):
            return GAP, f"{project.at(section)}: its tables have no row {stage!r}"
    measured = (project.results("03") or {"tables": {}})["tables"].get("before_after", [])
    if not {"before", "after"} <= {row.get("stage") for row in measured}:
        return GAP, "data/results/03_evaluate.json does not hold both: `python -m lib run 02 03`"
    return OK, f"{project.at(section)}, from data/results/03_evaluate.json"


def explorations(project: Project) -> Found:
    """At least two explorations, each complete."""
    complete, unfinished, not_run = [], [], []
    for section in (s for s in project.sections if re.match(r"6\.\d", s.title)):
        lacks = [part for part, word in PARTS.items() if not _run_in(section.text, word)]
        number = f"{int(section.title[2]) + 3:02}"  # 6.1 is notebook 04
        if lacks:
            unfinished.append(f"{project.at(section)}, {section.title}, has no {', no '.join(lacks)}")
        elif not project.results(number):
            not_run.append(f"{section.title} has no results: `python -m lib run {number}`")
        else:
            complete.append(section.title)
    if len(complete) < 2:
        return GAP, "; ".join([f"{len(complete)} of two", *unfinished, *not_run])
    if unfinished:
        return GAP, "; ".join(unfinished)
    return NOTE if not_run else OK, "; ".join([f"{len(complete)}: {', '.join(complete)}", *not_run])


def _run_in(text: str, word: str) -> bool:
    """Whether a paragraph of four words or more begins in bold with `word`."""
    found = re.search(rf"^\*\*[^*\n]*(?:{word})[^*\n]*\*\*(.*?)(?=^\*\*|\Z)", text, re.M | re.S | re.I)
    return found is not None and words(found[1]) >= 4


def sources(project: Project) -> Found:
    """Sources of code, models and data."""
    return described(
        project, 20, ("sources|references", "来源", "参考"), "code|代码", "model|模型", "links|https?://|arxiv|doi"
    )


def model_named(project: Project) -> Found:
    """GPT-2 117M, or said plainly which model."""
    measured = [r["provenance"] for n in ("01", "02", "03") if (r := project.results(n))]
    names = {p.get("base_model") for p in measured if p.get("stand_in")}
    for name in sorted(names, key=str):
        short = re.sub(r"\s*\(.*", "", str(name))
        if short not in project.text or not re.search(r"stand-in|替代|代替", project.text):
            return (GAP, f"the numbers are of the stand-in {short}, not of GPT-2, and {project.name} does not say so")
    if names:
        return (
            NOTE,
            f"named as a stand-in: {', '.join(map(str, names))}; for GPT-2's numbers put it in data/models/gpt2",
        )
    if not measured:
        return (GAP, "no results of notebooks 01-03 say which model it was: `python -m lib run 01 02 03`")
    return OK, f"{measured[0].get('base_model')}"


def code_runs(project: Project) -> Found:
    """The code runs and generates (notebooks 01-03)."""
    for number in ("01", "02", "03"):
        path = next(iter(sorted((project.root / "notebooks").glob(f"{number}_*.ipynb"))), None)
        way_out = f"`python -m lib run {number}`"
        if path is None:
            return GAP, f"notebook {number} was not executed: {way_out}"
        try:
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        except (ValueError, KeyError, TypeError):
            return GAP, f"{path.name} is damaged: {way_out}"
        outputs = [o for cell in cells for o in cell.get("outputs", [])]
        if not outputs or any(o.get("output_type") == "error" for o in outputs):
            return GAP, f"{path.name} has {'an error' if outputs else 'no outputs'}: {way_out}"
        if not project.results(number):
            return GAP, f"data/results has nothing of notebook {number}: {way_out}"
    return OK, "notebooks/01-03 executed without error, results in data/results"


def report_language(project: Project) -> Found:
    """Report language (Chinese or English)."""
    count = words(project.text)
    if count < 100:
        return GAP, f"{project.name} has {count} words of Chinese or English"
    return (OK, f"{'Chinese' if outline.language(project.text) == 'zh' else 'English'}, {count:,} words")


def figures_there(project: Project) -> Found:
    """Figures that the report shows."""
    shown = re.findall(r"!\[[^\]]*\]\(<?([^)\s>]+)", project.text)
    for target in shown:
        if not (project.root / target).is_file():
            return GAP, f"{project.name} shows {target}, which is missing: {way_back(target)}"
    if not shown:
        return GAP, f"{project.name} shows no figure"
    return OK, f"{len(shown)} figures"


def nothing_left_open(project: Project) -> Found:
    """No placeholder left."""
    if left := project.placeholders():
        shown = "; ".join(f"{project.name}:{line}: {what}" for line, what in left[:3])
        return GAP, f"{shown}{f' and {len(left) - 3} more' if left[3:] else ''}"
    return OK, f"none in {project.name}"


def numbers_traced(project: Project) -> Found:
    """Every number from data/results."""
    if not FILLED.search(project.raw):
        return (NOTE, f"{project.name} has no places that `python -m lib report` fills: nobody compared its numbers")
    if wrong := report.check(project.root):
        more = f" and {len(wrong) - 1} more: `python -m lib report --check`" if wrong[1:] else ""
        return GAP, f"{wrong[0].rstrip('.')}{more}"
    return OK, f"{len(FILLED.findall(project.raw))} places agree with data/results"


def defence(project: Project) -> Found:
    """Prepared for the meeting (10 minutes of questions)."""
    section = find(project.sections, "defence|defense", "答辩", "交流")
    if not section:
        return NOTE, "no defence map in the report; after handing in, write to the TA for a time"
    return NOTE, f"{project.at(section)}; after handing in, write to the TA for a time"


def commands_shown(project: Project) -> Found:
    """How to run the code, with a sample."""
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", project.text, re.M | re.S)
    if not any("pip install" in b for b in blocks) or not any("python -m lib run" in b for b in blocks):
        return (
            GAP,
            "README.md does not show `pip install -r requirements.txt` and `python -m lib run` in a code block",
        )
    if sum("python -m lib" not in b for b in blocks) < 1:
        return GAP, "README.md shows no sample of what comes out"
    return OK, f"README.md, {len(blocks)} code blocks"


def package(project: Project) -> Found:
    """The package handed in."""
    midterm = project.name == "README.md"
    due = "mid-term, 10 %, due 19 May (week 13)" if midterm else "final, 90 %, due 9 June (week 16)"
    path = project.root / "build" / ("midterm.zip" if midterm else "final.zip")
    command = f"`python -m lib pack{' --midterm' if midterm else ''}`"
    made = f"build/{path.name}, {path.stat().st_size / 1e6:.1f} MB" if path.is_file() else f"not built: {command}"
    return NOTE, f"{due}: {made}"


FINAL: tuple[Question, ...] = (
    members_named,
    division_given,
    structure,
    generation,
    prior_work,
    dataset,
    processing,
    before_after,
    explorations,
    sources,
    model_named,
    code_runs,
    report_language,
    figures_there,
    numbers_traced,
    nothing_left_open,
    defence,
    package,
)
MIDTERM: tuple[Question, ...] = (
    code_runs,
    commands_shown,
    model_named,
    report_language,
    figures_there,
    nothing_left_open,
    package,
)
