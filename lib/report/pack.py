"""`python -m lib pack`: one zip to hand in, with the report, the code, the executed notebooks, results and data.

The same content gives the same bytes: sorted names, one date, one set of permissions. Nothing is written
while lib.report.check finds gaps, or while lib.report.leaks finds something that must not leave.
"""

import io
import re
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from lib import profile
from lib.report import check, document, export, leaks, outline
from lib.results import write_bytes

FOLDERS = ("lib", "notebooks", "data", "figures", "tests")
FILES = ("README.md", "requirements.txt", "pyproject.toml", "LICENSE", ".gitignore")
DATE = (1980, 1, 1, 0, 0, 0)  # the first that a zip can hold
TOP = "gpt2-coursework"  # the folder that unpacking makes


def pack(midterm: bool = False, draft: bool = False, root: Path = profile.ROOT) -> Path:
    """Write build/final.zip or build/midterm.zip (with `draft`, ...-draft.zip) and return its path.

    Raises ValueError, in a sentence per gap or finding, and leaves the previous zip as it was. `draft` packs
    in spite of gaps, with a watermark on the report and the gaps in DRAFT.txt; never in spite of findings.
    """
    report = export.REPORTS[midterm]
    missing = check.gaps(check.check(midterm, root))
    if missing and not draft:
        command = f"python -m lib pack{' --midterm' if midterm else ''} --draft"
        raise ValueError(_listed("The check finds gaps", missing, f"`{command}` packs a marked draft."))
    names = files(root, midterm)
    contents = {name: _read(root, name) for name in names}
    found = [line for name, data in contents.items() for line in leaks.find(name, data, root)]
    if found:
        raise ValueError(_listed("These must not leave this machine", found, "Nothing was packed."))
    contents |= _reports(root, report, draft)
    if draft:
        gaps = "".join(f"- {gap}\n" for gap in missing) or "The check finds no gaps.\n"
        contents["DRAFT.txt"] = f"A draft, not for submission.\n\n{gaps}".encode()
    name = "midterm" if midterm else "final"
    path = root / "build" / f"{name}{'-draft' if draft else ''}.zip"
    write_bytes(path, zipped(contents))
    print(f"build/{path.name}: {len(contents)} files, {path.stat().st_size / 1e6:.1f} MB")
    return path


def files(root: Path, midterm: bool = False) -> list[str]:
    """The project's files to pack, sorted: those git tracks, without git those of the known folders.

    Raises ValueError where git does not track one that the package needs.
    """
    report = export.REPORTS[midterm]
    if not (root / report).is_file():
        raise ValueError(f"{report} is missing in {root}: write it first.")
    tracked = _tracked(root)
    found = _walked(root) if tracked is None else tracked
    top = {*FILES, report}
    names = sorted(
        name for name in found if (name in top or name.split("/")[0] in FOLDERS) and not leaks.kept_out(name)
    )
    needed = [report, *FILES[:3], *_shown(root, report)]
    needed += [
        f"{folder}/{p.name}" for folder in ("notebooks", "data/results") for p in (root / folder).glob("[0-9][0-9]_*.*")
    ]
    absent = sorted({name for name in needed if name not in names})
    if absent and tracked is not None:
        raise ValueError(f"git does not track {', '.join(absent[:5])}: `git add {' '.join(absent[:5])}`.")
    if absent:
        raise ValueError(f"{', '.join(absent[:5])} is missing in {root}.")
    others = [n for n in _walked(root) if n not in names and n.split("/")[0] in FOLDERS]
    if tracked is not None and (left := [n for n in others if not leaks.kept_out(n)]):
        print(f"Not tracked by git, so not packed: {', '.join(left[:5])}{' ...' if left[5:] else ''}")
    return names


def _tracked(root: Path) -> list[str] | None:
    """What `git ls-files` says of `root`; None where `root` is no checkout of its own or git is missing."""
    if not (root / ".git").exists():
        return None
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return listed.stdout.decode("utf-8").split("\0")[:-1]


def _walked(root: Path) -> list[str]:
    """The files of the known folders, links left out, since they may lead anywhere."""
    found = [root / name for name in (*FILES, *export.REPORTS.values())]
    found += [path for folder in FOLDERS for path in (root / folder).rglob("*")]
    inside = [p for p in found if p.is_file() and not p.is_symlink()]
    names = (p.relative_to(root).as_posix() for p in inside)
    return sorted({name for name in names if not leaks.kept_out(name)})


def _shown(root: Path, report: str) -> list[str]:
    """The figures that the report shows."""
    text = outline.without_comments((root / report).read_text(encoding="utf-8"))
    return re.findall(r"!\[[^\]]*\]\(<?([^)\s>]+)", text)


def _read(root: Path, name: str) -> bytes:
    path = root / name
    if path.is_symlink() or root.resolve() not in path.resolve().parents:
        raise ValueError(f"{name} is a link: put the file itself there.")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{name} is gone: `git checkout {name}` brings it back.") from None


def _reports(root: Path, report: str, draft: bool) -> dict[str, bytes]:
    """The report in every format, to lie beside its Markdown, so that links between files work."""
    tree = document.read(root / report, root)
    stem = "report" if report == "report.md" else "midterm_report"
    made: dict[str, bytes] = {}
    writers: dict[str, Callable] = export.FORMATS
    for suffix, write in tqdm(writers.items(), desc="report", unit="format"):
        made[f"{stem}.{suffix}"] = write(tree, root, draft)
    return made


def zipped(contents: dict[str, bytes]) -> bytes:
    """A zip of `contents` below TOP: names sorted, dates and permissions all the same."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as target:
        for name in tqdm(sorted(contents), desc="zip", unit="file"):
            entry = zipfile.ZipInfo(f"{TOP}/{name}", DATE)
            entry.compress_type, entry.create_system = zipfile.ZIP_DEFLATED, 3  # Unix, everywhere
            entry.external_attr = 0o100644 << 16
            target.writestr(entry, contents[name], compresslevel=9)
    return out.getvalue()


def _listed(what: str, lines: list[str], end: str) -> str:
    return "\n".join([f"{what}:", *(f"  {line}" for line in lines), end])
