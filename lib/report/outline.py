"""A Markdown file as its sections, for lib.report.check and lib.report.document."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

# code stays as it is; outside it comments go, such as the markers that lib.report.blocks fills
COMMENT = re.compile(
    r"^(`{3,}|~{3,})[^\n]*\n.*?^\1[^\n]*$|(?<!`)(`+)(?!`).*?(?<!`)\2(?!`)|<!--.*?-->", re.DOTALL | re.MULTILINE
)
HEADING = re.compile(r"(#{1,6})\s+(.*?)\s*#*\s*$")
HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")


def without_comments(text: str) -> str:
    """`text` without HTML comments, those in code excepted; every line keeps its number."""

    def keep(match: re.Match) -> str:
        return "\n" * match[0].count("\n") if match[0].startswith("<!--") else match[0]

    return COMMENT.sub(keep, text)


def prose(text: str) -> str:
    """`text` without fenced code; every line keeps its number."""
    fenced = re.compile(r"^(`{3,}|~{3,}).*?^\1[^\n]*$", re.DOTALL | re.MULTILINE)
    return fenced.sub(lambda match: "\n" * match[0].count("\n"), text)


def words(text: str) -> int:
    """Words of Latin letters and Chinese characters, a character counting as a word."""
    return len(re.findall(r"[A-Za-z]{2,}", prose(text))) + len(HAN.findall(prose(text)))


def language(text: str) -> str:
    """ "zh" where Chinese characters are more than a third of the words, else "en"."""
    return "zh" if len(HAN.findall(prose(text))) * 3 > words(text) > 0 else "en"


@dataclass(frozen=True)
class Section:
    """A heading with everything below it up to the next heading of its level or a higher one."""

    level: int
    title: str
    line: int  # of the heading, from 1
    text: str  # subsections included


def sections(text: str) -> list[Section]:
    """The sections of a Markdown text without comments, in order; a "#" in code is no heading."""
    lines = text.splitlines()
    heads: list[tuple[int, int, str]] = []
    fence = ""
    for number, line in enumerate(lines):
        mark = re.match(r"\s{0,3}(`{3,}|~{3,})", line)
        if mark and not fence:
            fence = mark[1]
        elif mark and mark[1].startswith(fence):
            fence = ""
        elif not fence and (head := HEADING.fullmatch(line)):
            heads.append((number, len(head[1]), head[2]))
    found = []
    for i, (number, level, title) in enumerate(heads):
        end = next((n for n, other, _ in heads[i + 1 :] if other <= level), len(lines))
        found.append(Section(level, title, number + 1, "\n".join(lines[number + 1 : end])))
    return found


def find(among: Sequence[Section], *patterns: str) -> Section | None:
    """The first section whose title holds the first pattern that any title holds, case aside."""
    fits = (s for p in patterns for s in among if re.search(p, s.title, re.IGNORECASE))
    return next(fits, None)
