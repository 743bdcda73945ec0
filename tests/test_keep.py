"""lib.keep: every exploration lifts out, with all that is its own, and the rest holds together."""

import re
import shutil
import subprocess
import sys

import pytest

from lib import keep
from lib.profile import ROOT
from lib.report import fill, pack

ALL = [p.name[:2] for p in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.py")) if p.name[:2] not in keep.ALWAYS]
PAIRS = [pair for pair in (["05", "06"], ["07", "08"], ["09", "10"]) if set(pair) <= set(ALL)]
pytestmark = pytest.mark.skipif(len(ALL) < 3, reason="the explorations were taken out")


@pytest.fixture
def project(tmp_path):
    """A copy of the project as it is handed on, without git."""
    for name in pack.files(ROOT, "report.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def without_paragraphs(text: str, lines: set[int]) -> str:
    """What a person might do who is in a hurry: the paragraph, item or table row of each line goes."""
    out, start = [], 1
    for part in re.split(r"(?m)(?<=\n)(?=\n|- |\|)", text):
        end = start + part.count("\n")
        if not lines & set(range(start, max(end, start + 1))):
            out.append(part)
        start = end
    return "".join(out)


def holds_together(root, gone: list[str], left: list[str]) -> None:
    for path in root.glob("*/**/*.py"):
        for name in keep.imports(path, anywhere=False):
            module = root / name.replace(".", "/")
            if re.fullmatch(r"lib(\.explore|\.report)?\.[a-z0-9_]+", name):
                known = [module, module.with_suffix(".py"), module.parent.with_suffix(".py")]
                exported = re.search(rf"\b{module.name}\b", (module.parent / "__init__.py").read_text("utf-8"))
                assert exported or any(p.exists() for p in known), f"{path}: {name}"
    names = [p.stem for p in (ROOT / "notebooks").glob("*.py") if p.name[:2] in gone]
    assert not [p for p in root.rglob("*") if p.stem in names or (p.parent.name == "figures" and p.name[:2] in gone)]
    readme, report = ((root / name).read_text("utf-8") for name in fill.FILES)
    theirs = rf"{'|'.join(names)}|(?:- \*\*|<!--\S* (?:begin )?|[Nn]otebooks? |lib run )({'|'.join(gone)})\b"
    assert not re.search(theirs, readme)
    assert len(re.findall(r"(?m)^### [6A]\.[1-9] ", report)) == 2 * (len(ALL) - len(gone))
    cards, before = (re.findall(r"(?m)^## `(\w+)`", (at / "data/README.md").read_text("utf-8")) for at in (root, ROOT))
    assert cards == [name for name in before if (root / "data" / name).is_dir()]
    assert all(re.match(r"report\.md, line \d+: ", line) for line in left)
    for _ in range(9):  # a paragraph less may leave another without its start
        if not left:
            break
        report, lines = root / "report.md", {int(re.search(r"\d+", x)[0]) for x in left}
        report.write_text(without_paragraphs(report.read_text("utf-8"), lines), "utf-8")
        left = fill.check(root)
    assert fill.check(root) == []


@pytest.mark.parametrize("kept", [*([n for n in ALL if n != out] for out in ALL), *PAIRS], ids=" ".join)
def test_each_exploration_lifts_out(kept, project, capsys):
    left = keep.keep(kept, yes=True, root=project)
    holds_together(project / "build" / "kept", [n for n in ALL if n not in kept], left)  # no git: it is a copy
    assert "lines now" in capsys.readouterr().out
    assert (project / "report.md").read_bytes() == (ROOT / "report.md").read_bytes()


def test_the_tests_that_remain_are_found_and_the_commands_too(project):
    (project / "data" / "diary.txt").write_text("what nobody else reads", encoding="utf-8")
    keep.keep(PAIRS[0], yes=True, root=project)
    root = project / "build" / "kept"
    assert not (root / "data" / "diary.txt").exists()
    for command in (["-m", "pytest", "--collect-only", "-q", "tests"], ["-m", "lib", "--help"]):
        done = subprocess.run([sys.executable, *command], cwd=root, capture_output=True, encoding="utf-8")
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "keep" in done.stdout and "compress" not in done.stdout  # notebook 10's command went with it
    assert sum(len(p.read_text("utf-8").splitlines()) for p in root.glob("lib/explore/*.py")) <= 1_500


def test_nothing_goes_over_uncommitted_changes_or_without_a_yes(project, monkeypatch):
    for command in ("init -q", "add -A", "-c user.name=a -c user.email=a@b.c commit -qm x"):
        subprocess.run(["git", *command.split()], cwd=project, check=True)
    monkeypatch.setattr("builtins.input", lambda _: "n")
    before = sorted(project.rglob("*"))
    assert keep.keep(ALL[:1], root=project) == [] and sorted(project.rglob("*")) == before
    (project / "report.md").write_text("changed", "utf-8")
    with pytest.raises(RuntimeError, match="Commit your changes first"):
        keep.keep(ALL[:1], yes=True, root=project)
    with pytest.raises(ValueError, match="No notebook 12; there are 01, "):
        keep.plan(["12"])


def test_sections_and_their_parts_of_the_appendix_are_numbered_anew():
    text = "### 6.{0} B\nSections {1}, 6.{0} and A.{0}.\n### A.{0} Of b\n<!--= 06.x -->6.1<!--/-->\n"
    assert keep.numbered_anew("### A.1 Of a\na\n" + text.format(2, 6.1), ["6.2"]) == text.format(1, keep.GONE)


def test_the_table_of_data_is_complete():
    """What is in data/ belongs to 01 to 03, or to explorations and files of lib/explore that the table names."""
    always = {"README.md", "results", "debian", "__pycache__", "runs", "models", "mirror", "private"}
    found = {re.sub(r"^build_|\.py$", "", p.name) if p.suffix == ".py" else p.name for p in (ROOT / "data").iterdir()}
    assert found - always - {"e2e_venues.txt", "readings.json"} <= set(keep.DATA)
    stems = {p.stem for p in (ROOT / "lib" / "explore").glob("*.py")}
    assert all({*ALL, *stems} & set(keep.DATA[name]) for name in found & set(keep.DATA)), "nobody uses it"
    thinned = "\nTaken out of the original project" in (ROOT / "README.md").read_text("utf-8")
    assert thinned or {name for users in keep.DATA.values() for name in users} <= {*ALL, *stems}
