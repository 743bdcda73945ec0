"""Rebuild data/release_notes: what Python packages wrote about their releases of 2026.

    python data/build_release_notes.py                       # `pip download`, 20 MB, then the file
    python data/build_release_notes.py --sdists folder       # with the pinned sdists already there

One document per release, as it stands in the changelog inside the package's source distribution, which
dates it: text that a model published before 2026 can't have seen.
"""

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

from build_debian import HERE

from lib.results import write_bytes

# sdist: its sha256, the changelog inside, the licence that its metadata names
SDISTS = {
    "aiohttp-3.14.5.tar.gz": (
        "5558a7f5a05af9ecf744af91e5baefc436f93c9333e656c27ec253f9a6bbe178",
        "CHANGES.rst",
        "Apache-2.0 AND MIT",
    ),
    "attrs-26.1.0.tar.gz": ("d03ceb89cb322a8fd706d4fb91940737b6642aa36998fe130a9bc96c985eff32", "CHANGELOG.md", "MIT"),
    "click-8.5.1.tar.gz": (
        "9bbfada76703fd1d784b83eea012e3e8c6a001a876543ef104fa56aaaeb072b4",
        "CHANGES.md",
        "BSD-3-Clause",
    ),
    "coverage-7.17.4.tar.gz": (
        "25ed180a4fb75b487509a4568acead1de41aefab8bedb06ac1ed5c14223fef97",
        "CHANGES.rst",
        "Apache-2.0",
    ),
    "flask-3.1.3.tar.gz": (
        "0ef0e52b8a9cd932855379197dd8f94047b359ca0a78695144304cb45f87c9eb",
        "CHANGES.rst",
        "BSD-3-Clause",
    ),
    "pip-26.3.tar.gz": ("6c36ae7da8695be67e3cd9f7d87919667ced53f57ce2ede75d89b5912ed2bc4c", "NEWS.rst", "MIT"),
    "pytest-9.2.0.tar.gz": (
        "97c4f3b1f3c7414aa36465e09b8220f1d03627993bd51b1282e193753c80557b",
        "doc/en/changelog.rst",
        "MIT",
    ),
    "structlog-26.1.0.tar.gz": (
        "f63a716cbd1b1291cf7661de7794b455acfa4c43c5bcf1630e6ad5ddc1adb3b7",
        "CHANGELOG.md",
        "MIT OR Apache-2.0",
    ),
    "trio-0.35.0.tar.gz": (
        "7efb295c78a0ecd1235c5759e620b5da564ca80d2efcb0055423588547248b96",
        "docs/source/history.rst",
        "MIT OR Apache-2.0",
    ),
    "urllib3-2.8.0.tar.gz": ("63bf2ead4c879426ebf22ef2a781eeb4aa3b4ae798a0435506f8687fd5bb9b63", "CHANGES.rst", "MIT"),
    "werkzeug-3.1.9.tar.gz": (
        "55ca7c70a75689be937aa27f8ff4b018f06ff4838fc73045560bf0f5a1291060",
        "CHANGES.rst",
        "BSD-3-Clause",
    ),
}
YEAR = "2026"  # GPT-2 is of 2019, SmolLM2 of 2024
LENGTHS = (200, 3_000)  # UTF-8 bytes: shorter is "a dependency was bumped", longer fills a context
# `## [26.1.0](link) - date`, or a line over a rule: `3.14.5 (date)`, `Version 8.5.1`, `trio 0.35.0 (date)`
HEADING = re.compile(
    r"^(?:## \S.*?(?P<md>\d+\.\d+(?:\.\d+)*)(?=[\] \n]).*\n"
    r"|(?:Version |pytest |trio )?(?P<rst>\d+\.\d+(?:\.\d+)*)(?: .*)?\n[=\-~]{3,}\n)",
    re.MULTILINE,
)
DATE = re.compile(r"\b(20\d\d-\d\d-\d\d)\b")
# what stands between two sections: rules, anchors and comments of the next one
TAIL = re.compile(r"(?:\s*^(?:-{4,}|\.\. .*)$)*\s*\Z", re.MULTILINE)


def download(folder: Path) -> None:
    """The pinned sdists in `folder`, by pip."""
    for sdist in SDISTS:
        pin = "==".join(sdist.removesuffix(".tar.gz").rsplit("-", 1))
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*command, "--no-binary", ":all:", "--dest", str(folder), pin], check=True)


def changelog(path: Path) -> str:
    """The text of an sdist's changelog. Raises ValueError for other bytes than the pinned ones."""
    wanted, member, _ = SDISTS[path.name]
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != wanted:
        raise ValueError(f"{path} has sha256 {found}, not {wanted}: download it again.")
    with tarfile.open(path) as archive:
        inside = archive.extractfile(f"{path.name.removesuffix('.tar.gz')}/{member}")
        return inside.read().decode("utf-8").replace("\r\n", "\n")


def releases(text: str) -> list[tuple[str, str, str]]:
    """(version, date, section with its heading) of every release that carries a date of YEAR."""
    headings = list(HEADING.finditer(text))
    ends = [h.start() for h in headings[1:]] + [len(text)]
    found = []
    for heading, end in zip(headings, ends, strict=True):
        section = TAIL.sub("", text[heading.start() : end]) + "\n"
        date = DATE.search("\n".join(section.split("\n")[:5]))
        if date and date[1].startswith(YEAR):
            found.append((heading["md"] or heading["rst"], date[1], section))
    return found


def build(folder: Path) -> tuple[bytes, dict]:
    """The file's bytes and the card's facts."""
    documents, sources, dropped = [], {}, 0
    for sdist, (digest, member, licence) in SDISTS.items():
        package = sdist.rsplit("-", 1)[0]
        kept = 0
        for version, date, text in releases(changelog(folder / sdist)):
            fits = LENGTHS[0] <= len(text.encode()) <= LENGTHS[1]
            kept, dropped = kept + fits, dropped + (not fits)
            if fits:
                row = {"id": f"{package}-{version}", "package": package, "date": date, "text": text}
                documents.append(row)
        sources[sdist] = {"sha256": digest, "file": member, "licence": licence, "documents": kept}
    lines = [json.dumps(row, ensure_ascii=False) for row in sorted(documents, key=lambda r: r["id"])]
    size = sum(len(row["text"].encode()) for row in documents)
    facts = {"documents": len(documents), "bytes": size, "outside_the_lengths": dropped}
    return ("\n".join(lines) + "\n").encode(), {**facts, "sources": sources}


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sdists", type=Path, help="a folder with the pinned sdists; else pip gets them")
    parser.add_argument("--out", type=Path, default=HERE / "release_notes")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        if options.sdists is None:
            download(Path(scratch))
        data, facts = build(options.sdists or Path(scratch))
    card = {
        "year": YEAR,
        "lengths_bytes": LENGTHS,
        **facts,
        "files_sha256": {"documents.jsonl": hashlib.sha256(data).hexdigest()},
    }
    write_bytes(options.out / "documents.jsonl", data)
    write_bytes(options.out / "card.json", (json.dumps(card, indent=1) + "\n").encode())
    print(json.dumps({k: v for k, v in facts.items() if k != "sources"}))


if __name__ == "__main__":
    main()
