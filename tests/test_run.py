import json
import os
import re
import subprocess
import sys

import jupytext
import nbformat
import pytest

from lib import profile
from lib import run as notebooks

SOURCES = sorted((profile.ROOT / "notebooks").glob("[0-9][0-9]_*.py"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_the_pair_agrees_and_was_executed_without_error(source):
    made = jupytext.read(source)
    kept = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    texts = [[(c.cell_type, c.source.strip()) for c in nb.cells] for nb in (made, kept)]
    assert texts[0] == texts[1], f"run `python -m lib run {source.stem[:2]}`: the .ipynb is not of this .py"
    outputs = [o for c in kept.cells if c.cell_type == "code" for o in c.outputs]
    assert outputs and not any(o.output_type == "error" for o in outputs)


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_the_form_of_a_notebook(source):
    cells = jupytext.read(source).cells
    prose = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    assert "## What we saw" in prose and "## What it does not show" in prose and "## For the report" in prose
    for cell in (c for c in cells if c.cell_type == "code"):
        lines = cell.source.splitlines()
        assert len(lines) <= 25, f"{source.stem}: a cell of {len(lines)} lines\n{cell.source}"
        for start in (i for i, line in enumerate(lines) if line.startswith("def ")):
            body = re.match(r"(?:    .*\n?|\n)*", "\n".join(lines[start + 1 :]))[0]
            assert len(body.strip().splitlines()) <= 25, f"{source.stem}: {lines[start]} belongs in lib"


def test_find_takes_numbers_and_names_and_lists_the_known():
    assert [p.stem for p in notebooks.find(["2", "03"])] == ["02_finetune", "03_evaluate"]
    assert notebooks.find([]) == SOURCES
    with pytest.raises(ValueError, match=r"No notebook '77'; there are 01_load_and_generate, 02_"):
        notebooks.find(["77"])


def test_run_keeps_outputs_and_drops_progress_and_a_failure_leaves_the_previous(tmp_path, capsys):
    source = tmp_path / "98_trial.py"
    source.write_text("# %%\nfrom tqdm import tqdm\nprint('kept')\nfor _ in tqdm(range(3)): pass\n")
    target = notebooks.execute(source)
    before = target.read_bytes()
    assert [o.text for o in nbformat.reads(before.decode("utf-8"), as_version=4).cells[0].outputs] == ["kept\n"]
    assert "kept" in capsys.readouterr().out
    source.write_text("# %%\nprint(2)\n1 / 0\n")
    with pytest.raises(RuntimeError, match="98_trial stopped: ZeroDivisionError"):
        notebooks.execute(source)
    assert target.read_bytes() == before


def test_a_task_of_ones_own_runs_02_and_03(tmp_path):
    rows = [{"prompt": f"{i} plus {i % 7} is", "target": f" {i + i % 7}."} for i in range(200)]
    (tmp_path / "my.jsonl").write_text("\n".join(map(json.dumps, rows)))
    environment = {**os.environ, "TASK": str(tmp_path / "my.jsonl"), "FAST_OUTPUT": str(tmp_path / "out")}
    command = [sys.executable, "-m", "lib", "run", "02", "03"]
    run = subprocess.run(command, cwd=profile.ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    table = json.loads((tmp_path / "out/data/results/03_evaluate.json").read_text())["tables"]["before_after"]
    assert {row["task"] for row in table} == {"my"}
    assert {row["method"] for row in table} == {"none", "full", "lora"}
    assert all(row["bits_per_byte"] > 0 for row in table)
