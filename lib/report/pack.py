"""`python -m lib pack`: one zip to hand in, with the report, the code, the executed notebooks, results and data."""

import io
import os
import re
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from lib import profile
from lib.report import export, rubric
from lib.results import write_bytes

LAYOUT = (
    *("README.md", "requirements.txt", "pyproject.toml", "LICENSE", ".gitignore", ".gitattributes"),
    *("notebooks/[0-9][0-9]_*.py", "notebooks/[0-9][0-9]_*.ipynb"),
    *("figures/[0-9][0-9]_*.png", "figures/[0-9][0-9]_*.svg"),
    *("lib/**/*.py", "lib/*.yaml", "lib/*.mplstyle", "tests/**/*.py", "tests/*.md"),
    *(f"lib/report/templates/*.{kind}" for kind in ("yaml", "lua", "typ", "css", "docx")),
    *("data/README.md", "data/build_*.py", "data/results/[0-9][0-9]_*.json", "data/faults.json"),
    *(f"data/{task}/{x}.jsonl" for task in ("debian", "tang", "idioms") for x in ("train", "validation", "test")),
    *(f"data/{task}/card.json" for task in ("debian", "tang", "idioms", "release_notes")),
    *("data/release_notes/documents.jsonl", "data/gpt2_bpe/merges.txt", "data/e2e_venues.txt", "data/readings.json"),
    *(f"data/anonymiser/{name}" for name in ("labelled.jsonl", "names.txt", "keys.txt", "traditional.txt")),
)
# none such as a Mac's ._x.py, Word's ~$x.docx, a browser's "x (1).py", OneDrive's x-DESKTOP-1A2B.py
NAME = re.compile(r"(\.git)?\w[\w.]*", re.ASCII)
DATE = (1980, 1, 1, 0, 0, 0)  # the first that a zip can hold
TOP = "gpt2-coursework"  # the folder that unpacking makes
KEY = re.compile(  # the prefixes that services give their keys, so that scanners find them
    r"\b(?:sk-[\w-]{20,}|hf_\w{20,}|gh[pousr]_\w{30,}|github_pat_\w{30,}|glpat-[\w-]{20,}|AKIA[A-Z\d]{16}|AIza[\w-]{35}"
    r"|xox[abprs]-[\w-]{10,})|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
MADE_UP = "data/anonymiser/labelled.jsonl"  # keys that nobody has, to measure the anonymiser with


def pack(midterm: bool = False, draft: bool = False, root: Path = profile.ROOT) -> Path:
    """Write build/final.zip or build/midterm.zip (with `draft`, ...-draft.zip) and return its path.

    Raises ValueError, in a sentence per gap of the rubric or private finding, and leaves the previous zip as it was.
    `draft` packs in spite of gaps, with a watermark on the report and a list of them; never in spite of findings."""
    report = "README.md" if midterm else "report.md"
    if (missing := rubric.gaps(rubric.check(midterm, root))) and not draft:
        end = f"`python -m lib pack{' --midterm' * midterm} --draft` packs a marked draft."
        raise ValueError("\n  ".join(["The check finds gaps:", *missing]) + f"\n{end}")
    contents = {name: (root / name).read_bytes() for name in files(root, report)}
    if found := [line for name, data in contents.items() for line in private(name, data, root)]:
        raise ValueError("\n  ".join(["Nothing was packed, since this must not leave the machine:", *found]))
    stem = "midterm_report" if midterm else "report"
    for form in export.WHAT:
        contents[f"{stem}.{form}"] = export.document(root / report, form, draft=draft)
    if draft:
        contents["DRAFT.txt"] = "\n- ".join(["A draft, not for submission.", *missing]).encode()
    path = root / "build" / f"{'midterm' if midterm else 'final'}{'-draft' * draft}.zip"
    write_bytes(path, zipped(contents))
    print(f"build/{path.name}: {len(contents)} files, {path.stat().st_size / 1e6:.1f} MB")
    return path


def files(root: Path, report: str) -> list[str]:
    """LAYOUT's files, of a git checkout the tracked. ValueError for one that is gone, a link, or not added to git."""
    found = {p.relative_to(root).as_posix() for pattern in (*LAYOUT, report) for p in root.glob(pattern)}
    if copies := sorted(name for name in found if not NAME.fullmatch(Path(name).name)):
        print(f"By their names copies that another program made, so not packed: {', '.join(copies)}")
    given = [os.environ[name] for name in ("TASK", "PRIVATE_DATA") if os.environ.get(name)]
    own = [path for x in given for path in (root / x, Path(x).absolute()) if path.is_relative_to(root / "data")]
    found -= {*copies, *(name for name in found if any((root / name).is_relative_to(path) for path in own))}
    if (root / ".git").exists():
        if gone := sorted(_git(root, "--deleted")):
            raise ValueError(f"{gone[0]} is gone: `git checkout {gone[0]}` brings it back, `git commit -a` lets it go.")
        left = sorted(found - _git(root))
        if needed := [name for name in left if not name.startswith(("lib/", "tests/"))]:
            raise ValueError(f"git does not track {', '.join(needed)}: `git add {' '.join(needed)}`.")
        if left:
            print(f"Not tracked by git, so not packed: {', '.join(left)}")
        found -= {*left}
    inside = root.resolve()
    if links := [name for name in sorted(found) if (root / name).resolve() != inside / name]:
        raise ValueError(f"{links[0]} is a link: put the file itself there.")
    return sorted(found)


def _git(root: Path, *options: str) -> set[str]:
    listed = subprocess.check_output(["git", "ls-files", "-z", *options], cwd=root)
    return set(listed.decode("utf-8").split("\0")) - {""}


def private(name: str, data: bytes, root: Path) -> Iterator[str]:
    """What in the file `name` must not leave, a sentence each, which never repeats a secret."""
    text = data.decode("utf-8", errors="ignore")
    if name != MADE_UP and KEY.search(text):
        yield f"{name} holds what looks like a key or token: take it out, and revoke it if it was real"
    for variable, value in os.environ.items():
        if re.search("KEY|TOKEN|SECRET|PASSW", variable) and len(value) >= 8 and value in text:
            yield f"{name} holds the value of ${variable}: take it out"
    for folder in (str(root.resolve()), str(Path.home())):
        # "/root" stands in innocent text, and Colab's folder in every notebook's first cell
        shown = any(form in text for form in (folder, folder.replace("\\", "\\\\")))
        if shown and len(folder) > 5 and not folder.startswith("/content"):
            yield f"{name} holds a path of this machine ({folder}): write it relative to the project"


def zipped(contents: dict[str, bytes]) -> bytes:
    """A zip of `contents` below TOP, the same bytes for the same content: sorted names, one date, one mode."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as target:
        for name in tqdm(sorted(contents), desc="zip", unit="file"):
            entry = zipfile.ZipInfo(f"{TOP}/{name}", DATE)
            entry.compress_type, entry.create_system = zipfile.ZIP_DEFLATED, 3  # Unix, everywhere
            entry.external_attr = 0o100644 << 16
            target.writestr(entry, contents[name], compresslevel=9)
    return out.getvalue()
