import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest
from jupyter_client.kernelspec import get_kernel_spec
from jupytext.combine import combine_inputs_with_outputs
from sample_project import commit, write

from lib import profile
from lib import run as notebooks
from lib.__main__ import main
from lib.report import export, fill, pack, rubric

SOURCES = sorted((profile.ROOT / "notebooks").glob("[0-9][0-9]_*.py"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_the_pair_agrees_was_executed_without_error_and_is_not_changed_by_jupyterlab(source):
    """What jupytext's contents manager does, kernel and all; `widgets` of Colab would stay in the metadata."""
    text, book = source.read_text("utf-8"), source.with_suffix(".ipynb").read_text("utf-8")
    config = jupytext.config.load_jupytext_config(str(source))
    made, kept = jupytext.reads(text, "py:percent", config=config), nbformat.reads(book, as_version=4)
    config.set_default_format_options(kept.metadata["jupytext"], read=True)
    both = combine_inputs_with_outputs(made, kept, fmt={"extension": ".py", "format_name": "percent"})
    both.metadata["kernelspec"]["display_name"] = get_kernel_spec("python3").display_name
    assert jupytext.writes(both, "py:percent", config=config) == text, "the .py"
    wrong = f"run `python -m lib run {source.stem[:2]}`: the .ipynb is not of this .py"
    assert jupytext.writes(both, "ipynb") + "\n" == book, wrong
    outputs = [o for c in kept.cells if c.cell_type == "code" for o in c.outputs]
    assert outputs and not any(o.output_type == "error" for o in outputs)
    assert set(kept.metadata) == {"jupytext", "kernelspec", "language_info"}, "python -m lib tidy"


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


def test_a_run_says_first_what_it_replaces_and_how_to_get_it_back(monkeypatch, capsys):
    monkeypatch.setattr(notebooks, "execute", lambda source: print("runs", source.stem))
    for root in (profile.kept_root(), profile.ROOT):  # of fast, which replaces nothing, and of the others
        monkeypatch.setattr(profile, "kept_root", lambda root=root: root)
        notebooks.run(["1"])
    assert re.match(r"runs 01.*\nEach .* replaces .*\n`git checkout data/results .*\nruns 01", capsys.readouterr().out)


def test_run_keeps_outputs_and_drops_progress_and_a_failure_leaves_the_previous(tmp_path, capsys):
    source = tmp_path / "98_trial.py"
    code = "from tqdm.auto import tqdm\nimport ipywidgets\nprint('kept')\nfor _ in tqdm(range(3)): pass\n"
    source.write_text(f"# %%\n{code}ipywidgets.VBox()\n\n# %%\nprint('the table')\n", "utf-8")
    target = notebooks.execute(source)
    before = target.read_bytes()
    made = nbformat.reads(before.decode("utf-8"), as_version=4)
    assert [o.text for c in made.cells for o in c.outputs] == ["kept\n", "the table\n"]
    said = capsys.readouterr().out
    assert "kept" in said and "VBox" not in said and said.endswith("98_trial.ipynb ===\nthe table\n")
    source.write_text("# %%\nprint(2)\n1 / 0\n", "utf-8")
    with pytest.raises(RuntimeError, match="98_trial stopped: ZeroDivisionError: division by zero\n") as failed:
        notebooks.execute(source)
    assert target.read_bytes() == before and "\x1b" not in str(failed.value)
    _, where, line, file = str(failed.value).splitlines()
    assert (where[:7], line) == ("Cell In", "----> 2 1 / 0") and "Zero" in Path(file.split(": ")[1]).read_text("utf-8")


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_is_one_line(tmp_path, number, status):
    shown = "display(HTML('[ 3/42 00:01 < 00:20]'))\nprint('it trains')"
    text = f"# %%\nimport time\nfrom IPython.display import HTML\n{shown}\ntime.sleep(60)\n\n# %%\n2\n"
    (tmp_path / "98_trial.py").write_text(text, "utf-8")
    code = "import sys; from pathlib import Path; from lib import __main__, run; run.FOLDER = Path(sys.argv[1]);"
    command = [sys.executable, "-c", f"{code} sys.exit(__main__.main(['run', '98']))", str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8", "cwd": profile.ROOT}
    process = subprocess.Popen(command, env=os.environ | {"FAST_OUTPUT": str(tmp_path)}, **pipes)
    while "it trains" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(number)
    *bars, line = process.communicate(timeout=60)[1].strip().splitlines()
    assert process.returncode == status and all("cells:" in bar for bar in bars if bar.strip())
    assert line.startswith("98_trial was interrupted; its results, figures and")
    assert line.endswith("The same command goes on from what is finished, a training from its last checkpoint.")


def test_a_notebook_saved_on_colab_is_mended(tmp_path):
    whole = nbformat.read(kept := SOURCES[0].with_suffix(".ipynb"), as_version=4)
    whole.metadata |= {"widgets": {"application/vnd.jupyter.widget-state+json": {}}, "colab": {"provenance": []}}
    whole.cells[2].metadata |= {"id": "x", "executionInfo": {"user": {"displayName": "Ann"}}}
    nbformat.write(whole, path := tmp_path / kept.name)
    assert main(["tidy", str(path)]) == 0 and path.read_text("utf-8") == kept.read_text("utf-8")


def test_a_task_of_ones_own_runs_02_and_03(tmp_path):
    rows = [f"{i} plus {i % 7} is; {i + i % 7}." for i in range(200)]
    (tmp_path / "my.csv").write_text("\n".join(["question;answer", *rows]), "utf-8")
    environment = {**os.environ, "TASK": "my.csv", "TASK_COLUMNS": "prompt=question,target=answer"}
    environment |= {"FAST_OUTPUT": str(tmp_path / "out"), "PYTHONPATH": str(profile.ROOT)}
    command = [sys.executable, "-m", "lib", "run", "02", "03"]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8")
    assert run.returncode == 0, run.stderr[-3000:]
    assert re.search(r"\n *task +stage .* rouge_l\n( +my .*\n)+$", run.stdout), "the table is the last that is printed"
    table = json.loads((tmp_path / "out/data/results/03_evaluate.json").read_text("utf-8"))["tables"]["before_after"]
    assert {(row["task"], row["method"]) for row in table} == {("my", method) for method in ("none", "full", "lora")}
    for stem in ("02_finetune", "03_evaluate"):
        report = json.loads((tmp_path / f"out/data/results/{stem}.json").read_text("utf-8"))["report"]
        assert report["claims"]["task is debian"] is False
        # but for what the tiny model writes, whose tokens are Debian's
        said = [text for name, text in report["tables"].items() if "sample" not in name and name != "others"]
        assert not re.search("debian|package", str(said), re.IGNORECASE)
    assert report["tables"]["tests"].count("| too few documents to say anything |") == 2


def test_everything_works_after_a_run_whose_data_were_out_of_reach(tmp_path, monkeypatch):
    """Notebook 03 on its tables as README's commands leave them behind a blocked hub."""
    root, out = tmp_path / "project", tmp_path / "out/data/results/03_evaluate.json"
    unused = shutil.ignore_patterns(".*", "build", "models", "mirror", "private", "runs")
    shutil.copytree(profile.ROOT, root, ignore=unused)
    value = json.loads((path := root / "data/results/03_evaluate.json").read_text("utf-8"))
    value["provenance"] |= {"profile": "fast", "seeds": [0]}
    for name, rows in value["tables"].items():
        kept = [r for r in rows if r.get("task") != "e2e" and r.get("seed", 0) == 0]
        value["tables"][name] = [] if name == "forgetting" else kept
    write(out, json.dumps(value))
    chosen = {"RESULTS": "stored", "FAST_OUTPUT": str(tmp_path / "out"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    command = [sys.executable, "-m", "lib", "run", "03"]
    subprocess.run(command, cwd=profile.ROOT, env=os.environ | chosen | {"DATA_MIRROR": ""}, check=True)
    shutil.copy(out, path)
    wrong = [w for w in fill.fill(root) if "`03." in w]
    assert wrong and all(re.search(r"claim `03\.[^`]+` does not hold|no figure or table `03\.e2e`", w) for w in wrong)
    assert any("`03.E2E was measured`" in w for w in wrong) and rubric.check(root=root)
    commit(root, "init", "-q")
    commit(root, "add", "-A")
    assert b"was not within reach" in export.document(root / "report.md", "html")
    monkeypatch.setattr(export, "document", lambda *_, **options: b"exported")
    assert pack.pack(draft=True, root=root).is_file()
