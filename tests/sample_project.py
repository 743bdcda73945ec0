"""A small finished project for the tests of lib.report: report, figures, notebooks, results."""

import json
import subprocess
from pathlib import Path

import nbformat
from PIL import Image, ImageDraw

from lib import profile

NAMES = ["01_load_and_generate", "02_finetune", "03_evaluate", "04_token_encoding", "05_position_encoding"]
REPORT, README = ((Path(__file__).parent / f"sample_{name}.md").read_text("utf-8") for name in ("report", "readme"))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


def notebook(stem: str, output: str = "bits per byte 1.042\n") -> str:
    """An executed notebook's JSON."""
    book = nbformat.v4.new_notebook()
    cell = nbformat.v4.new_code_cell("print('bits per byte 1.042')", id="b")
    cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=output)]
    book.cells = [nbformat.v4.new_markdown_cell(f"# {stem}\n\n$x^2$, 红豆", id="a"), cell]
    return nbformat.writes(book) + "\n"


def results(stem: str, report: dict | None = None) -> str:
    made = {"base_model": "SmolLM2-135M-Instruct (stand-in)", "stand_in": True, "profile": "full", "seeds": [0, 1, 2]}
    made |= {"device": "CPU, a processor", "git_commit": "a" * 40, "created": "2026-11-23T10:00:00+00:00"}
    row = {"task": "debian", "seed": 0}
    rows = [row | {"stage": "before", "bits_per_byte": 1.229}, row | {"stage": "after", "bits_per_byte": 1.042}]
    value = {"notebook": stem, "provenance": made, "tables": {"before_after": rows}, "report": report or {}}
    return json.dumps(value) + "\n"


def figure(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (1280, 560), "white")
    ImageDraw.Draw(picture).line((40, 500, 1240, 60), fill="#004488", width=6)
    picture.save(path, dpi=(200, 200))


def project(root: Path, git: bool = True) -> Path:
    """A finished project in the new folder `root`; with `git`, committed."""
    write(root / "report.md", REPORT)
    write(root / "README.md", README)
    write(root / "requirements.txt", "torch\n-e .\n")
    write(root / "pyproject.toml", '[project]\nname = "sample"\nversion = "1"\n')
    write(root / "LICENSE", "MIT\n")
    write(root / ".gitignore", "build/\ndata/models/\ndata/runs/\ndata/private/\n__pycache__/\n")
    for name in ("__init__", "packing", "__main__"):
        write(root / "lib" / f"{name}.py", '"""A module."""\n')
    write(root / "data/README.md", (profile.DATA / "README.md").read_text("utf-8"))
    write(root / "data/debian/card.json", '{"documents": 3}\n')
    write(root / "data/debian/train.jsonl", '{"prompt": "红豆", "target": "in /home/ken"}\n')
    for stem in NAMES:
        write(root / "notebooks" / f"{stem}.ipynb", notebook(stem))
        write(root / "notebooks" / f"{stem}.py", "# %%\nprint('bits per byte 1.042')\n")
        write(root / "data/results" / f"{stem}.json", results(stem))
    figure(root / "figures/03_before_after.png")
    if git:
        commit(root, "init", "-q")
        commit(root, "add", "-A")
    return root


def commit(root: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True)
