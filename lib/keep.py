"""`python -m lib keep 05 06`: take out the explorations that a team does not hand in, with all that is theirs alone.

What belongs to an exploration is found: its files in lib/explore by the imports of its notebook, their tests by what
they import, results and figures by the notebook's number, sections of report.md by their marks. 01 to 03 always stay.
"""

import ast
import importlib.metadata
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

from lib import profile
from lib.report import fill, pack

GONE = "[A section that was taken out]"
ALWAYS = ("01", "02", "03")
# What no import and no name shows: data of explorations, which stays, with its build script, while one of these
# notebooks or files of lib/explore does. A test holds it complete: what 01 to 03 do not need of data/ stands here.
DATA = {
    "anonymiser": ("anonymise",),
    "faults.json": ("11",),
    "gpt2_bpe": ("gpt2_bpe",),
    "idioms": ("07",),
    "release_notes": ("10",),
    "tang": ("04", "07", "10"),
}


def imports(path: Path, anywhere: bool = True) -> set[str]:
    """Dotted names that a file imports; without `anywhere` only those at its top level."""
    tree, found = ast.parse(path.read_text(encoding="utf-8")), set()
    for node in ast.walk(tree) if anywhere else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def reached(start: Iterable[Path], root: Path) -> set[Path]:
    """The files of lib/explore behind `start`."""
    found, todo = set(), list(start)
    while todo:
        for name in imports(todo.pop()):
            path = root / f"{name.replace('.', '/')}.py"
            if name.startswith("lib.explore.") and path.is_file() and path not in found:
                found.add(path)
                todo.append(path)
    return found


def plan(kept: Iterable[str], root: Path = profile.ROOT) -> SimpleNamespace:
    """What keeping these notebooks takes out: `numbers` of notebooks, `files`, lines of `requirements`; and `texts`,
    what the files that change hold afterwards. Raises ValueError for a number that no notebook has."""
    notebooks = {p.name[:2]: p for p in sorted((root / "notebooks").glob("[0-9][0-9]_*.py"))}
    kept = {n.zfill(2) for n in kept} | set(ALWAYS)
    if unknown := kept - set(notebooks):
        raise ValueError(f"No notebook {min(unknown)}; there are {', '.join(notebooks)}.")
    gone = SimpleNamespace(numbers=[n for n in notebooks if n not in kept], texts={})
    used = reached([notebooks[n] for n in kept], root)
    kept |= {p.stem for p in used}
    explore = set(root.glob("lib/explore/[!_]*.py")) - used
    modules = {f"lib.explore.{p.stem}" for p in explore}
    gone.files = sorted(explore) + sorted(p for p in root.glob("tests/*.py") if imports(p, anywhere=False) & modules)
    for pattern in ("notebooks/{}_*", "data/results/{}_*", "figures/{}_*"):
        gone.files += sorted(p for n in gone.numbers for p in root.glob(pattern.format(n)))
    data, unused = root / "data", [name for name, users in DATA.items() if not kept & set(users)]
    gone.files += [p for x in unused for p in (data / x, data / f"build_{x}.py") if p.exists()]
    cards, theirs = (data / "README.md").read_text(encoding="utf-8"), "|".join(unused)
    cards = re.sub(rf"(?ms)^## `(?:{theirs})`.*?(?=^## |\Z)|^\| `(?:{theirs})/[^\n]*\n", "", cards)
    gone.texts["data/README.md"] = without(cards, gone.numbers)
    code = {p for folder in ("lib", "notebooks", "tests", "data") for p in root.glob(f"{folder}/**/*.py")}
    idle = packages(gone.files) - packages(code - set(gone.files))
    lines = (root / "requirements.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    gone.requirements = [line.strip() for line in lines if re.split(r"[\s<>=~;\[]", line)[0].lower() in idle]
    gone.texts["requirements.txt"] = "".join(line for line in lines if line.strip() not in gone.requirements)
    texts = {name: without((root / name).read_text(encoding="utf-8"), gone.numbers) for name in fill.FILES}
    sections = re.findall(r"(?m)^### (6\.\d) ", texts["report.md"])
    gone.texts |= {name: numbered_anew(text, sections) for name, text in texts.items()}
    names = ", ".join(notebooks[n].stem.replace("_", " ") for n in gone.numbers) or "nothing"
    gone.texts["README.md"] += f"\nTaken out of the original project by `python -m lib keep`: {names}.\n"
    return gone


def packages(paths: Iterable[Path]) -> set[str]:
    """Distributions, in lower case, whose modules these files import."""
    owners = importlib.metadata.packages_distributions()
    names = (name for p in paths if p.suffix == ".py" for name in imports(p))
    return {owner.lower() for name in names for owner in owners.get(name.split(".")[0], ())}


def without(text: str, numbers: list[str]) -> str:
    """A Markdown text without the subsections whose marks are mostly theirs, and the items and rows theirs alone."""

    def stays(part: str) -> bool:
        found = re.findall(r"(?:<!--(?:[=?#]| begin) |notebooks/|figures/|\A- \*\*)(\d\d)[._*]", part)
        theirs = [max(found, key=found.count)] if part.startswith("### ") and found else found
        return not found or bool(set(theirs) - set(numbers))

    text = "".join(p for p in re.split(r"(?m)^(?=#{2,3} )", text) if not p.startswith("### ") or stays(p))
    text = re.sub(r"(?m)^(?:- .*\n(?:  .*\n)*|\|.*\n)", lambda m: m[0] if stays(m[0]) else "", text)
    return re.sub(r"(?m)^\|.*\n\|[ :|-]+\n\n(?:Table[ :].*\n\n)?", "", text)  # a head without rows


def numbered_anew(text: str, sections: list[str]) -> str:
    """`text` with the subsections of 6 that stay (their old numbers, "6.2") and their appendices in a row, and GONE for
    the others. A number outside the marks is always a section's, since results are never typed."""
    new = {old: f"{old[0]}.{i}" for i, x in enumerate(sections, 1) for old in (x, f"A{x[1:]}")}  # A.3 belongs to 6.3
    text = "".join(p for p in re.split(r"(?m)^(?=#{2,3} )", text) if not re.match(r"### A\.[1-9]", p) or p[4:7] in new)
    text = re.sub(r"(?<=report\.md#)(6)(\d)", lambda m: new.get(f"6.{m[2]}", "").replace(".", ""), text)  # anchors
    found = re.compile(rf"{fill.MARK.pattern}|\b(?P<section>6\.\d|A\.[1-9])\b(?!\.\d)", re.DOTALL)
    return found.sub(lambda m: new.get(m["section"], GONE) if m["section"] else m[0], text)


def keep(kept: Iterable[str], yes: bool = False, root: Path = profile.ROOT) -> list[str]:
    """Say what goes, ask once unless `yes`, do it, and list what is left for people, a line each. Without git the
    thinner project is written to build/kept. Raises RuntimeError for uncommitted changes."""
    if (root / ".git").exists():
        if subprocess.check_output(["git", "status", "--porcelain", "--untracked-files=no"], cwd=root).strip():
            raise RuntimeError("Commit your changes first: then `git checkout .` brings back all that goes.")
    else:
        root, origin = root / "build" / "kept", root
        profile.remove(root)
        for name in pack.files(origin, "report.md"):  # a list: what else lies here is nobody's to hand on
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(origin / name, root / name)
    gone = plan(kept, root)
    going = [p.relative_to(root).as_posix() for p in gone.files] + [f"requirements.txt: {x}" for x in gone.requirements]
    print(f"Notebooks {', '.join(gone.numbers) or 'none'} go, with:", *going, sep="\n  ")
    if not yes and input("Take them out? [y/N] ").strip().lower() != "y":
        return []
    for path in gone.files:
        profile.remove(path)
    for name, text in gone.texts.items():
        profile.write_bytes(root / name, text.encode())
    lines = sum(len(p.read_text(encoding="utf-8").splitlines()) for p in root.glob("lib/explore/*.py"))
    left = fill.fill(root)
    report = (root / "report.md").read_text(encoding="utf-8").splitlines()
    theirs = re.compile(rf"{re.escape(GONE)}|[Nn]otebooks? (?:{'|'.join(gone.numbers) or '-'})\b")
    left += [f"report.md, line {n}: rewrite “{m[0]}”." for n, x in enumerate(report, 1) if (m := theirs.search(x))]
    left.sort(key=lambda x: int(re.search(r"\d+", x)[0]))
    print(f"{root}: lib/explore has {lines} lines now. Left for you: {len(left) or 'nothing'}", *left, sep="\n")
    print("`python -m lib run 02 --results stored --profile full` lists the datasets anew; `git add -A` and commit.")
    return left
