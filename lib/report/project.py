"""The folder that lib.report.rubric asks: the report's text and sections, results, and how a question is answered."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from lib.report import outline
from lib.report.outline import Section, find, words

OK, GAP, NOTE = "ok", "missing", "note"
# what a team has still to write: [Name of member 1], [姓名], TODO
PLACEHOLDER = re.compile(r"(?<!!)\[[A-Z\u4e00-\u9fff][^\]\n]*\](?![(\[:])|\b(?:TODO|TBD|FIXME|XXX+)\b|待补充|待填写")
FILLED = re.compile(r"<!--=.*?<!--/-->|<!-- begin (\S+) -->.*?<!-- end \1 -->", re.DOTALL)
CODE_OR_FORMULA = re.compile(r"(`+)[^`\n]*\1|\$\$.*?\$\$|\$[^$\n]+\$", re.DOTALL)


class Project:
    """What the questions are asked of: the report's text and sections, results and notebooks below `root`."""

    def __init__(self, root: Path, midterm: bool = False):
        self.root, self.name = root, "README.md" if midterm else "report.md"
        path = root / self.name
        raw = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        self.raw, self.text = raw, outline.without_comments(raw)
        self.sections = outline.sections(self.text)

    def at(self, section: Section) -> str:
        return f"{self.name}:{section.line}"

    def placeholders(self) -> list[tuple[int, str]]:
        """(line, placeholder) of each that is left outside code, formulas and what lib.report.blocks filled in."""

        def blank(match: re.Match) -> str:
            return "\n" * match[0].count("\n")

        text = outline.prose(outline.without_comments(FILLED.sub(blank, self.raw)))
        lines = enumerate(CODE_OR_FORMULA.sub(blank, text).splitlines(), 1)
        return [(number, m[0]) for number, line in lines for m in PLACEHOLDER.finditer(line)]

    def results(self, number: str) -> dict | None:
        """The results file of notebook `number`; None where it is missing or damaged."""
        for path in sorted((self.root / "data" / "results").glob(f"{number}_*.json")):
            try:
                value = json.loads(path.read_text(encoding="utf-8"))
                return value if value["tables"] and value["provenance"] else None
            except (ValueError, KeyError, TypeError):
                return None
        return None


Found = tuple[str, str]  # status and text


def described(project: Project, least: int, titles: tuple[str, ...], *subjects: str) -> Found:
    """A section called one of `titles`, with `least` words, that speaks of every one of `subjects`
    (a regular expression, whose first alternative names the subject)."""
    section = find(project.sections, *titles)
    if not section:
        return GAP, f"no section called {readable(titles[0])!r} in {project.name}"
    where, count = project.at(section), words(section.text)
    if count < least:
        return GAP, f"{where}, {section.title!r}, has {count} words: say more"
    absent = [readable(s) for s in subjects if not re.search(s, section.text, re.IGNORECASE)]
    if absent:
        return GAP, f"{where}, {section.title!r}, does not speak of {', '.join(absent)}"
    return OK, f"{where}, {count} words"


def readable(pattern: str) -> str:
    return re.sub(r"[^\w -]", "", pattern.split("|")[0].replace(r"\b", "")).strip()


def rows_of(text: str) -> Iterator[list[str]]:
    """The cells of each row of a section's tables, heads left out; else "name: part" of its list items."""
    lines = text.splitlines()
    tables = [i for i, line in enumerate(lines) if re.fullmatch(r"\s*\|?[\s:|-]*-[\s:|-]*\|[\s:|-]*", line)]
    for start in tables:
        for line in lines[start + 1 :]:
            if "|" not in line:
                break
            yield [cell.strip() for cell in line.strip().strip("|").split("|")]
    for line in () if tables else lines:
        if item := re.match(r"\s*(?:[-*+]|\d+\.)\s+(.+?)\s*(?:[:：]|—)\s*(.*)", line):
            yield [item[1].strip("* "), item[2]]
