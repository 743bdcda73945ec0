"""`python -m lib check`: the assignment's rubric as questions to this folder, each with its answer."""

from dataclasses import dataclass
from pathlib import Path

from lib import profile
from lib.report.project import GAP, NOTE, OK, Project
from lib.report.rubric import FINAL, MIDTERM, Question

SIGN = {OK: "ok", GAP: "MISSING", NOTE: "note"}


@dataclass(frozen=True)
class Answer:
    status: str  # OK, GAP or NOTE
    question: str  # as the assignment asks it
    text: str  # where it is satisfied, or what is missing


def check(midterm: bool = False, root: Path = profile.ROOT) -> list[Answer]:
    """Every question's answer, in the assignment's order."""
    project = Project(root, midterm)
    if not project.text.strip():
        gap = f"{project.name} is missing or empty: write it, `python -m lib report` fills its numbers"
        return [Answer(GAP, "a report", gap)]
    return [Answer(*_asked(ask, project)) for ask in (MIDTERM if midterm else FINAL)]


def _asked(ask: Question, project: Project) -> tuple[str, str, str]:
    status, text = ask(project)
    return status, (ask.__doc__ or "").strip().rstrip("."), text


def gaps(answers: list[Answer]) -> list[str]:
    """The open questions, one sentence each."""
    return [f"{a.question}: {a.text}" for a in answers if a.status == GAP]


def show(answers: list[Answer]) -> str:
    """The answers as lines, and a sentence that sums them up."""
    lines = [f"{SIGN[a.status]:8} {a.question:44} {a.text}" for a in answers]
    open_ones = len(gaps(answers))
    lines.append(f"{open_ones} of {len(answers)} missing." if open_ones else "Nothing is missing.")
    return "\n".join(lines)
