"""`python -m lib check`: the assignment's rubric of 26 April 2024 as questions to this folder, each with its answer.

A length asked for here is a floor for "described at all"; whether a text is good, people decide."""

import json
import re
from pathlib import Path
from typing import NamedTuple

from lib import profile
from lib.report import fill
from lib.report.fill import CODE, FENCED, MARK, MATH, blank

OK, GAP, NOTE = "ok", "MISSING", "note"
HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
HEADING = re.compile(r"^(#{1,6})\s+(.*?)\s*#*$", re.MULTILINE)
TABLE = re.compile(r"^\|?[\s:|-]*-[\s:|-]*\|[\s:|-]*\n((?:.*\|.*\n?)*)", re.MULTILINE)  # its rule, and the rows below
# what a team has still to write: [Name of member 1], [姓名], TODO
PLACEHOLDER = re.compile(r"(?<!!)\[[A-Z\u4e00-\u9fff][^\]\n]*\](?![(\[:])|\b(?:TODO|TBD|FIXME|XXX+)\b|待补充|待填写")
TEAM = "team|小组|成员|分工"
PARTS = {  # of an exploration
    "principle": "principle|原理",
    "change": "change|改进|改动|方法",
    "experiment": "experiment|实验(?!结果)",
    "result": "results?|结果|结论",
}

Answer = tuple[str, str]  # OK, GAP or NOTE, and where it is satisfied or what is missing


def words(text: str) -> int:
    """Words of Latin letters and Chinese characters outside fenced code, a character counting as a word."""
    prose = blank(text, FENCED)
    return len(re.findall(r"[A-Za-z]{2,}", prose)) + len(HAN.findall(prose))


def language(text: str) -> str:
    """ "zh" where Chinese characters are more than a third of the words, else "en"."""
    return "zh" if len(HAN.findall(blank(text, FENCED, COMMENT))) * 3 > words(text) > 0 else "en"


class Section(NamedTuple):
    title: str
    at: str  # file:line of the heading
    text: str  # up to the next heading of its level or a higher one
    raw: str  # the same with its marks

    @property
    def rows(self) -> list[list[str]]:
        """The cells of its tables' rows, heads left out."""
        lines = [line for table in TABLE.findall(self.text) for line in table.splitlines()]
        return [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]


class Project:
    """What the questions are asked of: the report's text and sections, results and notebooks below `root`."""

    def __init__(self, root: Path, midterm: bool = False):
        self.root, self.midterm, self.name = root, midterm, "README.md" if midterm else "report.md"
        path = root / self.name
        self.raw = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        self.text = blank(self.raw, COMMENT)
        heads, self.sections = list(HEADING.finditer(blank(self.text, FENCED))), []
        for i, head in enumerate(heads):
            end = next((h.start() for h in heads[i + 1 :] if len(h[1]) <= len(head[1])), len(self.text))
            at = f"{self.name}:{self.text.count(chr(10), 0, head.start()) + 1}"
            self.sections.append(Section(head[2], at, self.text[head.end() : end], self.raw[head.end() : end]))

    def find(self, titles: str) -> Section | None:
        """The first section whose title holds the first of `titles` ("a|b") that any title holds, case aside."""
        fits = (s for t in titles.split("|") for s in self.sections[1:] if re.search(t, s.title, re.IGNORECASE))
        return next(fits, None)

    def results(self, number: str) -> dict | None:
        """The results file of notebook `number`; None where it is missing or damaged."""
        paths = sorted((self.root / "data" / "results").glob(f"{number}_*.json"))  # copies first
        try:
            value = json.loads(paths[-1].read_text(encoding="utf-8"))
            return value if value["tables"] and value["provenance"] else None
        except (ValueError, LookupError, TypeError):
            return None

    def described(self, least: int, titles: str, *subjects: str) -> Answer:
        """A section called one of `titles`, with `least` words, that speaks of each of `subjects` (patterns, whose
        first alternative names the subject)."""
        section = self.find(titles)
        if not section:
            return GAP, f"no section called {titles.split('|')[0]!r} in {self.name}"
        if (count := words(section.text)) < least:
            return GAP, f"{section.at}, {section.title!r}, has {count} words: say more"
        absent = [s.split("|")[0] for s in subjects if not re.search(s, section.text, re.IGNORECASE)]
        if absent:
            return GAP, f"{section.at}, {section.title!r}, does not speak of {', '.join(absent)}"
        return OK, f"{section.at}, {count} words"


def members(p: Project) -> Answer:
    section = p.find(TEAM)
    names = [row[0] for row in section.rows] if section else []
    if left := [name for name in names if not name or PLACEHOLDER.search(name)]:
        return GAP, f"{section.at}: {left[0] or 'an empty cell'} is no name yet"
    if not 2 <= len(names) <= 3:
        at = section.at if section else p.name
        return GAP, f"{at}: {len(names)} members, the course asks for 2 or 3, a table row each"
    return OK, f"{section.at}: {', '.join(names)}"


def division(p: Project) -> Answer:
    section = p.find(TEAM)
    if not section or not section.rows:
        return GAP, f"{p.name} says nowhere who did what: one table row per member"
    for name, *parts in section.rows:
        part = " ".join(parts)
        if words(part) + len(re.findall(r"\d+", part)) < 2 or PLACEHOLDER.search(part):  # "notebooks 02, 03" are two
            return GAP, f"{section.at}: what {name or 'a member'} did is not said ({part.strip() or 'empty'})"
    return OK, f"{section.at}: {len(section.rows)} members"


def dataset(p: Project) -> Answer:
    card = p.root / "data" / "README.md"
    written = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    for word in ("source|来源", "licence|license|许可"):
        if not re.search(word, written, re.IGNORECASE):
            return GAP, f"data/README.md, the card, {'has no ' + word.split('|')[0] if written else 'is missing'}"
    return p.described(40, r"\bdataset\b|^4 data|数据集", "train|训练")


def before_after(p: Project) -> Answer:
    section = p.find("before and after|before/after|微调前后|对比")
    if not section:
        return GAP, f"no section called 'before and after' in {p.name}"
    for stage, pattern in (("before", "before|前"), ("after", "after|后")):
        if not any(re.search(pattern, row[0].lower()) for row in section.rows):
            return GAP, f"{section.at}: its tables have no row {stage!r}"
    measured = (p.results("03") or {"tables": {}})["tables"].get("before_after", [])
    if not {"before", "after"} <= {row.get("stage") for row in measured}:
        return GAP, "data/results/03_evaluate.json does not hold both: `python -m lib run 02 03`"
    return OK, f"{section.at}, from data/results/03_evaluate.json"


def explorations(p: Project) -> Answer:
    """A section of 6 is the notebook's that most of its marks name; each part is a paragraph that begins in bold."""
    complete, unfinished, not_run = [], [], []
    numbers = {s.title[2] for s in p.sections if re.match(r"6\.\d", s.title)}
    alone = (s for s in p.sections if re.match(r"A\.[1-9]", s.title) and s.title[2] not in numbers)
    unfinished += [f"{s.at}, {s.title}, belongs to no section of 6" for s in alone]
    for section in (s for s in p.sections if re.match(r"6\.\d", s.title)):
        parts = re.findall(r"^\*\*([^*\n]+)\*\*(.*?)(?=^\*\*|\Z)", section.text, re.M | re.S)
        told = " ".join(head for head, body in parts if words(body) >= 4)
        lacks = [part for part, word in PARTS.items() if not re.search(word, told, re.IGNORECASE)]
        named = re.findall(r"<!--(?:[=?#]| begin) (\d\d)\.", section.raw) or [f"{int(section.title[2]) + 3:02}"]
        number = max(named, key=named.count)
        if lacks:
            unfinished.append(f"{section.at}, {section.title}, has no {', no '.join(lacks)}")
        elif not p.results(number):
            not_run.append(f"{section.title} has no results: `python -m lib run {number}`")
        else:
            complete.append(section.title)
    if len(complete) < 2 or unfinished:
        return GAP, "; ".join([f"{len(complete)} complete, two are asked for", *unfinished, *not_run])
    return NOTE if not_run else OK, "; ".join([f"{len(complete)}: {', '.join(complete)}", *not_run])


def model_named(p: Project) -> Answer:
    measured = [r["provenance"] for n in ("01", "02", "03") if (r := p.results(n))]
    if not measured:
        return GAP, "no results of notebooks 01-03 say which model it was: `python -m lib run 01 02 03`"
    for name in sorted({str(m.get("base_model")) for m in measured if m.get("stand_in")}):
        if name.split(" (")[0] not in p.text or not re.search(r"stand-in|替代|代替", p.text):
            return GAP, f"the numbers are of the stand-in {name}, not of GPT-2, and {p.name} does not say so"
        return NOTE, f"named as a stand-in: {name}; for GPT-2's numbers put it in data/models/gpt2"
    return OK, f"{measured[0].get('base_model')}"


def code_runs(p: Project) -> Answer:
    for number in ("01", "02", "03"):
        path, way_out = next((p.root / "notebooks").glob(f"{number}_*.ipynb"), None), f"`python -m lib run {number}`"
        if path is None:
            return GAP, f"notebook {number} was not executed: {way_out}"
        try:
            outputs = [o for c in json.loads(path.read_text(encoding="utf-8"))["cells"] for o in c.get("outputs", [])]
        except (ValueError, KeyError, TypeError):
            return GAP, f"{path.name} is damaged: {way_out}"
        if not outputs or any(o.get("output_type") == "error" for o in outputs):
            return GAP, f"{path.name} has {'an error' if outputs else 'no outputs'}: {way_out}"
        if not p.results(number):
            return GAP, f"data/results has nothing of notebook {number}: {way_out}"
    return OK, "notebooks/01-03 executed without error, results in data/results"


def length(p: Project) -> Answer:
    """The language, and as advice the words of each part, tables apart, beside what they should be at most."""
    count = {name: words(re.sub(r"(?m)^\|.*", "", s.text)) if (s := p.find(name)) else 0 for name in LONGEST}
    count[p.name] = words(re.sub(r"(?m)^\|.*", "", p.text)) - (0 if p.midterm else sum(count.values()))
    if count[p.name] < 100:
        return GAP, f"{p.name} has {count[p.name]} words of Chinese or English"
    most = {p.name: 1_500} if p.midterm else {p.name: 9_000} | LONGEST
    told = ", ".join(f"{name.strip('^')} {count[name]:,} of {limit:,} words" for name, limit in most.items())
    told += ", in Chinese" if language(p.text) == "zh" else ", in English"
    return NOTE if any(count[x] > most[x] for x in most) else OK, told


def figures(p: Project) -> Answer:
    shown = re.findall(r"!\[[^\]]*\]\(<?([^)\s>]+)", p.text)
    if gone := [target for target in shown if not (p.root / target).is_file()]:
        return GAP, f"{p.name} shows {gone[0]}, which is missing: `git checkout {gone[0]}` or run its notebook"
    return (OK, f"{len(shown)} figures") if shown else (GAP, f"{p.name} shows no figure")


def numbers_traced(p: Project) -> Answer:
    if not (marks := MARK.findall(p.raw)):
        return NOTE, f"{p.name} has no marks that `python -m lib report` fills: nobody compared its numbers"
    if wrong := fill.check(p.root, [p.name]):
        return GAP, f"{wrong[0]} {len(wrong)} in all: `python -m lib report --check`"
    return OK, f"{len(marks)} marks agree with data/results"


def nothing_left_open(p: Project) -> Answer:
    lines = blank(p.raw, FENCED, MARK, COMMENT, CODE, MATH).splitlines()
    if left := [f"{p.name}:{i}: {m[0]}" for i, line in enumerate(lines, 1) for m in PLACEHOLDER.finditer(line)]:
        return GAP, "; ".join(left[:3]) + f" and {len(left) - 3} more" * bool(left[3:])
    return OK, f"none in {p.name}"


def commands_shown(p: Project) -> Answer:
    blocks = [m[0] for m in FENCED.finditer(p.raw)]
    if not all(any(command in b for b in blocks) for command in ("pip install", "python -m lib run")):
        return GAP, "README.md does not show `pip install -r requirements.txt` and `python -m lib run` in a code block"
    if all("python -m lib" in b for b in blocks):
        return GAP, "README.md shows no sample of what comes out"
    return OK, f"README.md, {len(blocks)} code blocks"


def package(p: Project) -> Answer:
    due = "mid-term, 10 %, due 19 May (week 13)" if p.midterm else "final, 90 %, due 9 June (week 16)"
    path = p.root / "build" / ("midterm.zip" if p.midterm else "final.zip")
    command = f"`python -m lib pack{' --midterm' * p.midterm}`"
    made = f"build/{path.name}, {path.stat().st_size / 1e6:.1f} MB" if path.is_file() else f"not built: {command}"
    return NOTE, f"{due}: {made}{'; then write to the TA for a time' * (not p.midterm)}"


STRUCTURE = ("attention|注意力", "embedding|嵌入", "MLP|feed-forward|前馈", "normali[sz]ation|layer ?norm|归一化")
LONGEST = {"^Abstract": 200, "^Appendix": 3_000}  # words
SOURCES = ("code|代码", "model|模型", "links|https?://|arxiv|doi")
GENERATION = ("logits?|probabilit|概率", "sampl|top-?[kp]|采样|解码", "token|词元")
BOTH = {
    "GPT-2 117M, or said plainly which model": model_named,
    "The code runs and generates (notebooks 01-03)": code_runs,
    "Report language, and not too long": length,
    "Figures that the report shows": figures,
    "Every number from data/results": numbers_traced,
    "No placeholder left": nothing_left_open,
}
FINAL = {
    "An abstract": lambda p: p.described(30, "^Abstract"),
    "The abstract in Chinese": lambda p: p.described(30, "^摘要"),
    "Members named (2 or 3)": members,
    "Division of labour given": division,
    "The model's structure, in detail": lambda p: p.described(60, r"^[\d. ]*structure|结构", *STRUCTURE),
    "The principle of generation": lambda p: p.described(60, "how it generates|generation|生成", *GENERATION),
    "Prior work and what was verified first": lambda p: p.described(60, "prior work|related work|调研|相关工作"),
    "The dataset introduced, with its card": dataset,
    "Data processing explained": lambda p: p.described(30, "processing|cleaning|处理"),
    "Before against after fine-tuning": before_after,
    "At least two explorations, each complete": explorations,
    **{t[:-3]: lambda p, t=t: p.described(40, t) for t in ("Introduction|引言", "Discussion|讨论", "Conclusion|结论")},
    "Sources of code, models and data": lambda p: p.described(20, "sources|references|来源|参考", *SOURCES),
    **BOTH,
    "The package handed in": package,
}
MIDTERM = {"How to run the code, with a sample": commands_shown, **BOTH, "The package handed in": package}


def check(midterm: bool = False, root: Path = profile.ROOT) -> list[tuple[str, str, str]]:
    """(OK, GAP or NOTE; the question; where it is satisfied or what is missing) of every question."""
    project = Project(root, midterm)
    if not project.text.strip():
        return [(GAP, "a report", f"{project.name} is missing or empty: write it, then `python -m lib report`")]
    asked = (MIDTERM if midterm else FINAL).items()
    return [(status, question, text) for question, ask in asked for status, text in [ask(project)]]


def gaps(answers: list[tuple[str, str, str]]) -> list[str]:
    """The open questions, one sentence each."""
    return [f"{question}: {text}" for status, question, text in answers if status == GAP]


def command(midterm: bool) -> bool:
    """Print the answers and a sentence that sums them up; whether a question is open."""
    answers = check(midterm)
    count = len(gaps(answers))
    print(*(f"{status:8} {question:50} {text}" for status, question, text in answers), sep="\n")
    print(f"{count} of {len(answers)} missing." if count else "Nothing is missing.")
    return bool(count)
