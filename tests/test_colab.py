import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jupytext
import packaging
import pytest

from lib import colab, evaluation, profile, results

# Of googlecolab/backend-info, pip-freeze.gpu.txt, June 2026: what requirements.txt or its dependencies name.
IMAGE = {
    "torch": "2.11.0+cu128", "numpy": "2.0.2", "torchao": "0.10.0", "pandas": "2.2.2", "scipy": "1.16.3",
    "matplotlib": "3.10.0", "transformers": "5.9.0", "tokenizers": "0.22.2", "accelerate": "1.13.0",
    "peft": "0.19.1", "datasets": "4.0.0", "huggingface_hub": "1.17.0", "safetensors": "0.7.0",
    "pyarrow": "18.1.0", "nltk": "3.9.1", "tqdm": "4.67.3", "psutil": "5.9.5", "filelock": "3.29.0",
    "packaging": "26.2", "pillow": "11.3.0", "ipywidgets": "7.7.1", "ipykernel": "6.17.1",
    "ipython": "7.34.0", "tornado": "6.5.1", "traitlets": "5.7.1", "pyzmq": "26.2.1",
    "jupyter_client": "7.4.9", "jupytext": "1.19.3", "nbclient": "0.10.4", "nbformat": "5.10.4",
    "pytest": "8.4.2", "ruff": "0.15.15", "brotli": "1.2.0", "zstandard": "0.25.0",
    "charset-normalizer": "3.4.7", "requests": "2.32.4", "fsspec": "2025.3.0", "pyyaml": "6.0.3",
    "regex": "2025.11.3", "scikit-learn": "1.6.1", "absl-py": "1.4.0", "lxml": "6.1.1",
}  # fmt: skip
TORCH = """
from types import SimpleNamespace
device = dtype = autocast = object
bfloat16, float16, float32 = "torch.bfloat16", "torch.float16", "torch.float32"
cuda = SimpleNamespace(is_available=lambda: True, get_device_name=lambda: "Tesla T4",
                       get_device_capability=lambda: (7, 5))
"""
COLAB = "import sys, types; sys.modules['google.colab'] = types.ModuleType('google.colab')\n"


def test_only_what_is_lacking_is_installed_and_never_torch_or_numpy(monkeypatch):
    versions = {"torch": "2.6.0", "numpy": "1.26.4", "pandas": "1.0.0", "tqdm": "4.67.1"}
    monkeypatch.setattr(colab, "installed", versions.get)
    text = "# ranges\ntorch>=2.7\nnumpy>=2\npandas>=2.2,<3.2  # frames\ntqdm>=4.67,<5\npeft>=0.21\n-e .\n"
    assert colab.lacking(text) == ["pandas>=2.2,<3.2", "peft>=0.21"]


def test_the_projects_own_requirements_parse_and_are_met_here():
    assert colab.lacking((profile.ROOT / "requirements.txt").read_text()) == []


def test_results_are_kept_on_drive_where_it_is_mounted_and_checkpoints_are_not(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(profile, "DRIVE", tmp_path)
    monkeypatch.setenv("PROFILE", "fast")  # a test never writes there
    assert profile.kept_root() == profile.output_root() != profile.ROOT
    monkeypatch.setenv("PROFILE", "cpu")
    saved = results.save("99_drive", {"t": [{"x": 1}]})
    assert saved == tmp_path / "gpt2-coursework/data/results/99_drive.json" and saved.is_file()
    ratings = evaluation.path_of_ratings(type("Task", (), {"name": "debian"}))
    assert ratings.is_relative_to(tmp_path)
    assert profile.output_root() == profile.ROOT
    monkeypatch.setattr(profile, "DRIVE", tmp_path / "not mounted")
    assert profile.kept_root() == profile.ROOT


def image(folder: Path) -> Path:
    """The Python of a fresh environment that pip takes for Colab's; the packages in it are names, torch says T4."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    site = next(folder.glob("lib/python3*/site-packages"))
    shutil.copytree(Path(packaging.__file__).parent, site / "packaging")
    for package, version in IMAGE.items():
        about = site / f"{package.replace('-', '_')}-{version}.dist-info"
        about.mkdir()
        text = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
        (about / "METADATA").write_text(text)
        (about / "RECORD").write_text(f"{about.name}/METADATA,,\n{about.name}/RECORD,,\n")
    (site / "torch.py").write_text(TORCH)
    return folder / "bin" / "python"


@pytest.mark.network
@pytest.mark.skipif(os.name == "nt", reason="Colab is Linux")
def test_the_first_cell_in_a_simulated_session(tmp_path):
    """The notebooks' own cell: pip resolves for real against Colab's versions and installs nothing (PIP_DRY_RUN)."""
    python, content = image(tmp_path / "image"), tmp_path / "content"
    for name in ("lib", "notebooks"):
        shutil.copytree(profile.ROOT / name, content / "project" / name)
    for name in ("pyproject.toml", "requirements.txt"):
        shutil.copy(profile.ROOT / name, content / "project")
    cells = jupytext.read(profile.ROOT / "notebooks" / "02_finetune.py").cells
    (cell,) = [c.source for c in cells if c.cell_type == "code" and "google.colab" in c.source]
    report = tmp_path / "report.json"
    environment = {n: v for n, v in os.environ.items() if n not in ("PYTHONPATH", "PROFILE")}
    environment |= {"PIP_DRY_RUN": "1", "PIP_REPORT": str(report)}
    run = subprocess.run(
        [python, "-c", COLAB + cell.replace("/content", str(content)) + "\nimport lib.profile"],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    if "No matching distribution" in run.stderr or "Could not fetch" in run.stderr:
        pytest.skip(f"no package index: {run.stderr[-200:]}")
    assert run.returncode == 0, run.stderr[-3000:]
    assert "Tesla T4; computing in float16" in run.stdout
    assert "torch 2.11.0+cu128, numpy 2.0.2 as they were" in run.stdout
    assert "Google Drive is not mounted" in run.stdout
    changed = {i["metadata"]["name"].lower() for i in json.loads(report.read_text())["install"]}
    assert {"transformers", "peft", "gpt2-finetuning-coursework"} <= changed
    assert not changed & {*colab.KEEP, "jupyter_client", "torchvision", "triton"}
    assert not list((tmp_path / "image").glob("lib/*/site-packages/torchao-*"))
