"""Plan, then write: one line before a quatrain says its metre, its rhyme and the words that will rhyme.

A model writes from left to right, so that the fourth line must find a rhyme for what the second happened to
end in. With the plan as the first line of the target, the rhyming words are chosen side by side and only
copied to the lines' ends later. Nothing in the model or the loss changes: the plan is text that the model
learns to write itself. Rhyme words first: Ghazvininejad et al. 2016, "Generating Topical Poetry", EMNLP;
a plan before the text: Yao et al. 2019, "Plan-and-Write", arXiv:1811.05701; format in the text: Li et al.
2020, "Rigid Formats Controlled Text Generation", arXiv:2004.08022.
"""

from collections.abc import Sequence
from dataclasses import replace

from lib.explore.chinese import is_quatrain, lines_of, quatrain, rhyme, rhyme_of
from lib.tasks import Example, Task

METRES = {5: "五", 7: "七"}
NO_RHYME = "?"  # stands for the final of a character without pinyin


def plan_of(text: str, last: str | None = None) -> str:
    """The plan of a quatrain: metre, final of line 4's end, ends of lines 2 and 4; 七an颜间. `last` replaces
    the end of line 4. Raises ValueError for a text that is no quatrain."""
    lines = quatrain(text)
    second, fourth = lines[1][-1], last or lines[3][-1]
    return f"{METRES[len(lines[0])]}{rhyme_of(fourth) or NO_RHYME}{second}{fourth}"


def with_plan(task: Task) -> Task:
    """`task` with each quatrain's plan as the first line of its target. Raises ValueError for another text."""

    def planned(e: Example) -> Example:
        texts = [f"{plan_of(text)}\n{text}" for text in (e.target, *e.references)]
        return replace(e, target=texts[0], references=tuple(texts[1:]))

    splits = {s: [planned(e) for e in getattr(task, s)] for s in ("train", "validation", "test")}
    return replace(task, name=f"{task.name}-plan", sha256=f"{task.sha256}-plan", **splits)


def without_plan(text: str) -> str:
    """What follows the first line; "" where there is only one."""
    return text.partition("\n")[2]


def unrhymed_plans(poems: Sequence[str]) -> list[str]:
    """For each quatrain the plan whose second word is the end of the next quatrain, of any metre, that does
    not rhyme with its first: what a model that only learned to copy ends its lines in. Raises ValueError
    where every poem rhymes with every other one."""
    ends = [quatrain(text)[3][-1] for text in poems]
    plans = []
    for i, text in enumerate(poems):
        second = quatrain(text)[1][-1]
        others = [c for c in (*ends[i + 1 :], *ends[:i]) if c != second and not rhyme(second, c)]
        if not others:
            raise ValueError(f"No end of the other poems fails to rhyme with {second}: pass more.")
        plans.append(plan_of(text, others[0]))
    return plans


def follows(text: str) -> dict[str, float]:
    """How a text keeps to its own first line: plan_rhymes (the two words rhyme), metre_kept and ends_kept
    (lines 2 and 4 end in them), each 0 or 1. Without a readable plan or a quatrain after it, what needs
    one is 0."""
    plan, poem = text.partition("\n")[0].strip(), without_plan(text)
    lines = lines_of(poem) if is_quatrain(poem) else None
    readable = len(plan) >= 3
    return {
        "plan_rhymes": float(readable and rhyme(plan[-2], plan[-1])),
        "metre_kept": float(lines is not None and METRES[len(lines[0])] == plan[:1]),
        "ends_kept": float(lines is not None and lines[1][-1] + lines[3][-1] == plan[-2:]),
    }
