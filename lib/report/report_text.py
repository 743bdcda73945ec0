"""report.md as text: its markers, and what may not stand outside them.

Inline `<!--= name -->text<!--/-->` and, on lines of their own, `<!-- begin name -->` ... `<!-- end name -->` hold what
`lib.report.blocks` fills in. A marker that was broken by hand is named with its line; so is a number typed between them.
"""

import difflib
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

COMMENT = re.compile(r"<!--(.*?)-->", re.DOTALL)
INLINE = re.compile(r"= ([\w.]+) ")
EDGE = re.compile(r" (begin|end) ([\w.]+) ")
NAME = "report.md"


@dataclass(frozen=True)
class Marker:
    name: str
    start: int  # of what stands inside
    end: int
    line: int  # of the opening marker, from 1
    inline: bool


def line_of(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def fail(line: int, what: str) -> ValueError:
    return ValueError(f"{NAME}, line {line}: {what}")


def markers(text: str) -> list[Marker]:
    """The markers in order. Raises ValueError naming the line of the first that is broken."""
    found: list[Marker] = []
    opened: tuple[str, int, int, bool] | None = None  # name, end of the opening comment, line, inline
    for comment in COMMENT.finditer(text):
        line, body = line_of(text, comment.start()), comment[1]
        inline, edge = INLINE.fullmatch(body), EDGE.fullmatch(body)
        opens = inline[1] if inline else edge[2] if edge and edge[1] == "begin" else None
        if opens:
            if opened:
                raise fail(opened[2], f"{_opening(opened)} is not closed before line {line}.")
            opened = (opens, comment.end(), line, bool(inline))
            continue
        if body != "/" and not edge:
            raise fail(line, f"`{comment[0].splitlines()[0][:60]}` is no marker of a known form.")
        if not opened:
            raise fail(line, f"`{comment[0]}` closes nothing: the marker before it is missing or broken.")
        closing = "/" if opened[3] else f" end {opened[0]} "
        if body != closing:
            raise fail(line, f"`{comment[0]}` stands where {_opening(opened)} of line {opened[2]} should be closed.")
        inside = text[opened[1] : comment.start()]
        if opened[3] and "\n" in inside:
            raise fail(opened[2], f"{_opening(opened)} runs over its line: its `<!--/-->` is missing or moved.")
        found.append(Marker(opened[0], opened[1], comment.start(), opened[2], opened[3]))
        opened = None
    if opened:
        raise fail(opened[2], f"{_opening(opened)} is never closed.")
    rest = COMMENT.sub(lambda m: " " * len(m[0]) if "\n" not in m[0] else m[0], text)
    if broken := re.search(r"<!-|-->", rest):
        raise fail(line_of(rest, broken.start()), f"`{broken[0]}` is the rest of a broken marker.")
    return found


def _opening(opened: tuple[str, int, int, bool]) -> str:
    return f"`<!--= {opened[0]} -->`" if opened[3] else f"`<!-- begin {opened[0]} -->`"


def known(found: list[Marker], names: Collection[str]) -> None:
    """Raises ValueError for a marker whose name is not among `names`, with the nearest that is."""
    for marker in found:
        if marker.name not in names:
            near = difflib.get_close_matches(marker.name, names, 1)
            raise fail(
                marker.line, f"nothing is called `{marker.name}`{f'; did you mean `{near[0]}`' if near else ''}."
            )


def replaced(text: str, make: Callable[[str, str], str]) -> str:
    """`text` with `make(name, heading above)` inside every marker, a block between blank lines."""
    out, at = [], 0
    for m in markers(text):
        above = re.findall(r"^##+ .*$", text[: m.start], re.MULTILINE)
        new = make(m.name, above[-1] if above else "")
        out += [text[at : m.start], new if m.inline else f"\n\n{new}\n\n" if new else "\n"]
        at = m.end
    return "".join([*out, text[at:]])


# --- what stands outside the markers

LISTED = re.compile(r"\*\*Published constants\.\*\*.*?(?=\n\n(?!-)|\Z)", re.DOTALL)
TEAM, SOURCES = "## 1 ", "## 8 "
NUMBER = re.compile(r"(?<![A-Za-z0-9_./:])(?<![A-Za-z0-9]-)(?<!\d,)[-+−]?(\d+(?:,\d{3})*(?:\.\d+)*)([A-Za-z_]*)")
MATH = re.compile(r"\$\$.*?\$\$|\$[^$\n]+\$", re.DOTALL)
HEADING = re.compile(r"^#+ [\d.]+", re.MULTILINE)
ADDRESS = re.compile(r"https?://[^\s)]+")
ROW = re.compile(r"^\|.*$", re.MULTILINE)
SMALL = {str(i) for i in range(11)}
KINDS = (  # numbers that are no results, anywhere in running text
    re.compile(r"\b(?:1[89]|20)\d\d\b(?![.,]\d)"),  # years
    re.compile(r"\barXiv:\d{4}\.\d{4,5}"),
    re.compile(r"\b(?:[Ss]ections?|[Ee]xplorations?) \d(?:\.\d)?(?:(?:, | and | to )\d(?:\.\d)?)*"),
    re.compile(r"\b[Nn]otebooks? \d\d(?:(?:, | and | to )\d\d)*"),
    re.compile(r"\blib run(?: \d\d)+"),
    re.compile(r"\b95 %"),  # the level of every interval
)
IN_SOURCES = (re.compile(r"\bRFC \d+"), re.compile(r"\b\d+(?:\.\d+)+"))  # versions
FIGURE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")


def _blank(text: str, patterns: Collection[re.Pattern]) -> str:
    """`text` with what the patterns find turned to blanks: lines and places stay."""
    for pattern in patterns:
        text = pattern.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), text)
    return text


def _only(text: str, pattern: re.Pattern) -> str:
    """`text` with all but what the pattern finds turned to blanks."""
    out, at = [], 0
    for m in pattern.finditer(text):
        out += [re.sub(r"[^\n]", " ", text[at : m.start()]), m[0]]
        at = m.end()
    return "".join([*out, re.sub(r"[^\n]", " ", text[at:])])


def outside(text: str) -> str:
    """`text` with comments and what stands inside markers turned to blanks."""
    for m in markers(text):
        inside = re.sub(r"[^\n]", " ", text[m.start : m.end])
        text = text[: m.start] + inside + text[m.end :]
    return _blank(text, [COMMENT])


def sections(text: str) -> Iterator[tuple[str, int, int]]:
    """(heading line, start, end) of every `##` section; what stands before the first is one with heading ""."""
    starts = [m.start() for m in re.finditer(r"^## .*$", text, re.MULTILINE)]
    for start, end in zip([0, *starts], [*starts, len(text)], strict=True):
        yield text[start:].split("\n", 1)[0] if start in starts else "", start, end


def constants(text: str) -> set[str]:
    """The numbers that the paragraph "Published constants" of the sources lists."""
    listed = LISTED.search(text)
    return {m[1] + m[2] for m in NUMBER.finditer(listed[0])} if listed else set()


def typed_numbers(text: str) -> list[tuple[int, str]]:
    """(line, number) of every number outside the markers that is neither a year, an arXiv id, the number of a section
    or notebook, a confidence level, nor a published constant that the sources list.

    The team's section is its own. Tables take none of these; formulas take integers up to 10 as well.
    """
    allowed, found = constants(text), []
    plain = outside(text)
    for heading, start, end in sections(plain):
        if heading.startswith(TEAM):
            continue
        part = _blank(plain[start:end], [HEADING, ADDRESS, FIGURE])
        tables, prose = _only(part, ROW), _blank(part, [ROW])
        if heading.startswith(SOURCES):
            prose = _blank(prose, [LISTED, *IN_SOURCES])
        formulas, prose = _only(prose, MATH), _blank(prose, [MATH, *KINDS])
        for m in NUMBER.finditer(tables):
            found.append((line_of(text, start + m.start()), m[0]))
        for m in NUMBER.finditer(formulas):
            if m[1] not in allowed and m[1] not in SMALL:
                found.append((line_of(text, start + m.start()), m[0]))
        for m in NUMBER.finditer(prose):
            if m[1] + m[2] not in allowed and not m[2].startswith("_"):
                found.append((line_of(text, start + m.start()), m[0]))
    return sorted(found)


def figures(text: str) -> list[tuple[int, str]]:
    """(line, path) of every figure, inside markers too."""
    return [(line_of(text, m.start()), m[1]) for m in FIGURE.finditer(text)]


def lines_that_begin_with_a_marker(text: str) -> list[int]:
    """Lines where Markdown takes an inline marker for HTML and shows what follows as it is written."""
    return [line_of(text, m.start()) for m in re.finditer(r"^\s*(?:[-*>] +)*<!--=", text, re.MULTILINE)]
