"""`python -m lib report`: fill report.md in place from data/results, or check it.

The prose is written by hand; every number, table and figure stands between markers (lib.report.report_text) and comes from a
registered block (lib.report.report_blocks). What was filled is written whole or not at all.
"""

import re
from collections.abc import Callable
from pathlib import Path

from lib import profile
from lib.report import report_model
from lib.report import report_text as markup
from lib.report.report_blocks import BLOCKS, NOTEBOOKS, Files, not_run, render
from lib.report.report_defence import CLAIMS, defence_map, missing
from lib.report.report_defence import check as check_claim
from lib.results import write_text

WHOLE: dict[str, Callable[[Files], str]] = {  # blocks about all files at once
    "provenance": report_model.provenance_table,
    "defence.map": lambda files: defence_map(files.root),
}
HEADINGS = (
    "## 1 Team and division of labour",
    "## 2 The model",
    "### Structure",
    "### How it generates",
    "## 3 Prior work",
    "## 4 Data",
    "### The dataset",
    "### Processing",
    "## 5 Before and after fine-tuning",
    "## 6 Explorations",
    "### 6.1 Token encodings",
    "### 6.2 Position encodings",
    "### 6.3 Attention",
    "### 6.4 Chinese",
    "### 6.5 Private-domain data",
    "### 6.6 Innovation",
    "### 6.7 New scenarios",
    "### 6.8 Speed and faults",
    "## 7 Limits",
    "## 8 Sources",
    "## Appendix A: Defence map",
    "## Appendix B: Questions a TA would ask",
)
RUN_INS = ("**Principle.**", "**Change.**", "**Experiment.**", "**Result.**")
WIDEST = 116  # characters of a table row that a page holds; the defence map wraps
REFERENCE = re.compile(r"`((?:lib\.\w+(?:\.\w+)*)|(?:(?:lib|tests|notebooks|data)/[\w./]+(?:::\w+)?))`")


def path_of(root: Path) -> Path:
    return root / markup.NAME


def read(root: Path = profile.ROOT) -> str:
    """The report's text. Raises FileNotFoundError or ValueError in one sentence."""
    path = path_of(root)
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing: get it back with `git checkout {markup.NAME}`.") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8.") from None


def filled(text: str, files: Files) -> str:
    """`text` with every marker filled. Raises ValueError for a broken marker, naming its line, and for results, figures
    or names that a block needs and that are damaged or missing."""
    markup.known(markup.markers(text), [*BLOCKS, *WHOLE])
    said: dict[str, set[str]] = {}

    def make(name: str, heading: str) -> str:
        if name in WHOLE:
            return WHOLE[name](files)
        return render(name, files, said.setdefault(heading, set()))

    return markup.replaced(text, make)


def fill(root: Path = profile.ROOT) -> list[str]:
    """Write report.md anew where it changes; returns what a team should know. The previous file stays where anything
    fails."""
    old, files = read(root), Files(root)
    new = filled(old, files)
    if new != old:
        write_text(path_of(root), new)
    count = len(markup.markers(new))
    state = "filled anew" if new != old else "is as the results say"
    return [f"{markup.NAME}: {count} places, {state}.", *notices(new, files)]


def notices(text: str, files: Files) -> list[str]:
    """What is no mistake of the file but a reader will ask about: placeholders, notebooks that were not run, results of
    different models or profiles side by side."""
    said: list[str] = []
    said += [not_run(name) for name in NOTEBOOKS if files[name] is None]
    run = files.notebooks()
    if quick := [name[:2] for name, n in run.items() if n.provenance["profile"] == "fast"]:
        said.append(
            f"Notebooks {', '.join(quick)} ran with PROFILE=fast, whose budgets are a test's: run them without it."
        )
    for what, key in (("base models", "base_model"), ("profiles", "profile")):
        values: dict[str, list[str]] = {}
        for name, n in run.items():
            if n.provenance[key]:
                values.setdefault(n.provenance[key], []).append(name[:2])
        if len(values) > 1:
            parts = "; ".join(f"{value} in {', '.join(names)}" for value, names in values.items())
            said.append(f"Results of different {what} stand side by side ({parts}): run the notebooks again with one.")
    return said


def check(root: Path = profile.ROOT) -> list[str]:
    """Everything that is wrong with report.md, a sentence each; [] for a report that may be handed in but for
    `notices`."""
    text, files = read(root), Files(root)
    try:
        new = filled(text, files)
    except ValueError as error:
        return [str(error)]
    wrong = []
    for old, now in zip(markup.markers(text), markup.markers(new), strict=True):
        if text[old.start : old.end] != new[now.start : now.end]:
            wrong.append((old.line, f"`{old.name}` is not what data/results gives: run `python -m lib report`."))
    for line, number in markup.typed_numbers(text):
        wrong.append(
            (
                line,
                f"{number} stands outside a marker and is no year, section or published constant: fill it "
                "in by a marker, or list it with its source under “Published constants”.",
            )
        )
    for line, figure in markup.figures(text):
        if not (root / figure).is_file():
            wrong.append((line, f"{figure} is missing: run its notebook again."))
    for line in markup.lines_that_begin_with_a_marker(text):
        wrong.append((line, "a line may not begin with a marker: Markdown would show what follows as raw text."))
    wrong += _structure(text) + _references(text, root)
    said = [f"{markup.NAME}, line {line}: {what}" for line, what in sorted(wrong)]
    return said + [sentence for claim in CLAIMS for sentence in check_claim(claim, root)]


def _structure(text: str) -> list[tuple[int, str]]:
    """Headings that are missing or out of order, explorations without their paragraphs, tables that are too wide."""
    wrong, at = [], 0
    for heading in HEADINGS:
        found = re.compile(rf"^{re.escape(heading)}$", re.MULTILINE).search(text, at)
        if not found:
            wrong.append((markup.line_of(text, at), f"the heading “{heading}” is missing here."))
            continue
        at = found.end()
        if re.match(r"### 6\.", heading):
            body = re.split(r"^##", text[at:], maxsplit=1, flags=re.MULTILINE)[0]
            wrong += [(markup.line_of(text, at), f"“{heading}” has no paragraph {r}") for r in RUN_INS if r not in body]
    appendix = text.find(HEADINGS[-2])
    for m in re.finditer(r"^\|(?! :?--).*$", text, re.MULTILINE):
        if len(m[0]) > WIDEST and (m.start() < appendix or appendix < 0):
            wrong.append(
                (markup.line_of(text, m.start()), f"a table's row has {len(m[0])} characters, {WIDEST} fit a page.")
            )
    return wrong


def _references(text: str, root: Path) -> list[tuple[int, str]]:
    """Places in the code that the prose names and that do not exist. Folders that a machine fills are left out."""
    found = []
    for m in REFERENCE.finditer(markup.outside(text)):
        ignored = m[1].startswith(("data/private", "data/runs", "data/models", "data/mirror", "data/results"))
        if not ignored and (what := missing(m[1], root)):
            found.append((markup.line_of(text, m.start()), f"`{m[1]}`: {what}."))
    return found
