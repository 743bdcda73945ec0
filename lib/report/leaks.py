"""What must not leave with a package: keys, this machine's paths and home folders, private folders.

A finding names the file and the kind, never the secret itself.
"""

import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath

from lib.explore import anonymise, detectors

NEVER = ("data/private", "data/models", "data/runs", "data/mirror", "build", "dist", ".git", ".venv")
CACHES = {"__pycache__", ".ipynb_checkpoints", ".pytest_cache", ".ruff_cache"}
KEY_FILES = re.compile(
    r"\.env(\..*)?|.*\.(pem|key|p12|pfx)|id_(rsa|ed25519|ecdsa)|\.netrc|(kaggle|credentials)\.json", re.I
)
MODELS = {".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".pkl"}
RATINGS = re.compile(r"ratings.*\.jsonl")  # raters' names
BINARY = {".png", ".jpg", ".jpeg", ".gif", ".pdf", ".docx", ".zip", ".gz", ".xz", ".npz", ".parquet"}
SECRET_NAMES = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD", re.IGNORECASE)
MADE_UP = "data/anonymiser/labelled.jsonl"  # keys and homes that nobody has, to measure lib.explore.anonymise with
# what a notebook wrote holds no path of the machine that ran it
MACHINE = re.compile(r"(?<![\w.:/~])/(?:root|tmp|kaggle|mnt|private/var)/[\w.-]+|\b[A-Z]:\\\\?Users\b")


def kept_out(name: str) -> bool:
    """Whether the file `name`, relative to the project, never goes into a package."""
    path = PurePosixPath(name)
    return (
        any(name == folder or name.startswith(folder + "/") for folder in NEVER)
        or bool(CACHES & set(path.parts))
        or any(part.endswith(".egg-info") for part in path.parts)
        or path.suffix.lower() in MODELS
        or bool(KEY_FILES.fullmatch(path.name) or RATINGS.fullmatch(path.name))
    )


def find(name: str, data: bytes, root: Path) -> Iterator[str]:
    """What in the file `name` must not leave, a sentence each.

    Documents of data sets and tests may speak of home folders (they are other people's words, or made up),
    but nothing may hold a key or a path of this machine.
    """
    if PurePosixPath(name).suffix.lower() in BINARY:
        return
    text = data.decode("utf-8", errors="replace")
    if name != MADE_UP and detectors.KEY_FORMS.search(text):
        yield f"{name} holds what looks like a key or token: take it out, and revoke it if it was real"
    for variable, value in os.environ.items():
        if SECRET_NAMES.search(variable) and len(value) >= 8 and value in text:
            yield f"{name} holds the value of ${variable}: take it out"
    if own := next((path for path in _own(root) if path in text), None):
        yield f"{name} holds a path of this machine ({own}...): {_way_out(name)}"
    elif not (name.startswith("tests/") or re.match(r"data/\w+/.*\.jsonl", name)):
        homes = [text[slice(*span)] for span in detectors.paths(text)]
        written = name.endswith(".ipynb") or name.startswith(("data/results/", "figures/"))
        homes += MACHINE.findall(text) if written else []
        if homes := [path for path in homes if path.strip() not in _made_up()]:
            yield f"{name} holds an absolute path ({homes[0]}): {_way_out(name)}"


@cache
def _made_up() -> str:
    """The labelled texts: notebook 08 shows what of them the anonymiser gets wrong."""
    return "\n".join(row.text for row in anonymise.labelled())


def _own(root: Path) -> list[str]:
    """The project's folder and the user's home as text would hold them, JSON's backslashes included."""
    paths = [str(root.resolve()), str(Path.home())]
    # "/" and "/root" stand in innocent text, and Colab's folder in every notebook's first cell
    found = [p for p in paths if len(p) > 5 and not p.startswith("/content")]
    return found + [p.replace("\\", "\\\\") for p in found if "\\" in p]


def _way_out(name: str) -> str:
    if number := re.match(r"(?:notebooks|data/results|figures)/(\d\d)_", name):
        return f"`python -m lib run {number[1]}` in another folder, or take it out by hand"
    return "write it relative to the project"
