import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jupytext
import packaging
import pytest

from lib import colab, profile

# Of googlecolab/backend-info, pip-freeze.gpu.txt, June 2026: what requirements.txt or its dependencies name.
IMAGE = """
torch==2.11.0+cu128 numpy==2.0.2 torchao==0.10.0 pandas==2.2.2 scipy==1.16.3 matplotlib==3.10.0 transformers==5.9.0
tokenizers==0.22.2 accelerate==1.13.0 peft==0.19.1 datasets==4.0.0 huggingface_hub==1.17.0 safetensors==0.7.0
pyarrow==18.1.0 nltk==3.9.1 tqdm==4.67.3 psutil==5.9.5 filelock==3.29.0 packaging==26.2 pillow==11.3.0
ipywidgets==7.7.1 ipykernel==6.17.1 ipython==7.34.0 tornado==6.5.1 traitlets==5.7.1 pyzmq==26.2.1
jupyter_client==7.4.9 jupytext==1.19.3 nbclient==0.10.4 nbformat==5.10.4 pytest==8.4.2 ruff==0.15.15 brotli==1.2.0
zstandard==0.25.0 charset-normalizer==3.4.7 requests==2.32.4 fsspec==2025.3.0 pyyaml==6.0.3 regex==2025.11.3
scikit-learn==1.6.1 absl-py==1.4.0 lxml==6.1.1
"""
IMAGE = dict(pin.split("==") for pin in IMAGE.split())
UNTOUCHED = {"torch", "numpy", "ipykernel", "ipython", "ipywidgets", "jupyter-client", "jupyter_client", "tornado"}
TORCH = """
from types import SimpleNamespace
device = dtype = autocast = object
bfloat16, float16, float32 = "torch.bfloat16", "torch.float16", "torch.float32"
cuda = SimpleNamespace(is_available=lambda: True, get_device_name=lambda: "Tesla T4",
                       get_device_capability=lambda: (7, 5))
"""
PIP = """
import json, sys
read = lambda flag: open(sys.argv[sys.argv.index(flag) + 1]).read().split("\\n") if flag in sys.argv else []
print(json.dumps({"arguments": sys.argv[1:], "wanted": read("-r"), "held": read("-c")}), flush=True)
"""
COLAB = "import sys, types; sys.modules['google.colab'] = types.ModuleType('google.colab')\n"
linux = pytest.mark.skipif(os.name == "nt", reason="Colab is Linux")


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """The notebooks' own first cell in a fresh environment that says it is Colab: python, what was printed, and what
    pip was asked for. The packages there are names, torch says T4 and pip only writes down its arguments.
    """
    folder = tmp_path_factory.mktemp("colab")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "image"], check=True)
    python = folder / "image" / "bin" / "python"
    site = next(folder.glob("image/lib/python3*/site-packages"))
    for package, version in IMAGE.items():
        about = site / f"{package.replace('-', '_')}-{version}.dist-info"
        about.mkdir()
        text = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
        (about / "METADATA").write_text(text)
    shutil.copytree(Path(packaging.__file__).parent, site / "packaging")
    for module, code in (("torch", TORCH), ("pip", PIP)):
        (site / f"{module}.py").write_text(code)

    for name in ("lib", "notebooks", "pyproject.toml", "requirements.txt"):
        source, target = profile.ROOT / name, folder / "content" / "project" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    cells = jupytext.read(profile.ROOT / "notebooks" / "02_finetune.py").cells
    (cell,) = [c.source for c in cells if c.cell_type == "code" and "google.colab" in c.source]
    run = subprocess.run(
        [python, "-c", COLAB + cell.replace("/content", str(folder / "content")) + "\nimport lib.profile"],
        cwd=folder,
        capture_output=True,
        text=True,
        env={n: v for n, v in os.environ.items() if n not in ("PYTHONPATH", "PROFILE")},
    )
    assert run.returncode == 0, run.stderr
    *calls, shown = run.stdout.split("\n", 2)
    return python, shown, [json.loads(call) for call in calls]


@linux
def test_the_first_cell_tells_the_gpu_and_the_dtype_and_asks_pip_for_what_lacks(session):
    _, shown, (installs, uninstalls) = session
    assert "Tesla T4; computing in float16." in shown
    assert "torch 2.11.0+cu128, numpy 2.0.2 as they were" in shown
    assert "Google Drive is not mounted" in shown
    names = {re.match(r"[\w-]*", line)[0] for line in installs["wanted"]}
    assert {"transformers", "peft", "sacrebleu"} <= names and not names & UNTOUCHED
    assert {f"{name}=={IMAGE[name.replace('-', '_')]}" for name in colab.KEEP} == set(installs["held"])
    assert uninstalls["arguments"] == ["uninstall", "-q", "-y", "torchao"]


@linux
@pytest.mark.network
def test_pip_finds_versions_that_leave_colabs_torch_and_numpy(session, tmp_path):
    """The resolver's own answer for Colab's versions, with this Python: nothing is installed."""
    python, _, (installs, _) = session
    for name in ("wanted", "held"):
        (tmp_path / f"{name}.txt").write_text("\n".join(installs[name]))
    command = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--dry-run", "--report", "report.json"]
    pip = subprocess.run([*command, "-c", "held.txt", "-r", "wanted.txt"], cwd=tmp_path, capture_output=True, text=True)
    if "No matching distribution" in pip.stderr or "NewConnectionError" in pip.stderr:
        pytest.skip(f"no package index: {pip.stderr[-200:]}")
    assert pip.returncode == 0, pip.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    changed = {i["metadata"]["name"].lower() for i in report["install"]}
    assert {"transformers", "peft", "sacrebleu"} <= changed
    assert not changed & {*UNTOUCHED, "torchvision", "triton"}
