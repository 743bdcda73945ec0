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

# Of googlecolab/backend-info, pip-freeze.gpu.txt, June 2026.
IMAGE = """
torch==2.11.0+cu128 numpy==2.0.2 torchao==0.10.0 pandas==2.2.2 transformers==5.9.0 peft==0.19.1 ipywidgets==7.7.1
ipykernel==6.17.1 ipython==7.34.0 tornado==6.5.1 jupyter_client==7.4.9 packaging==26.2
"""
IMAGE = dict(pin.split("==") for pin in IMAGE.split())
UNTOUCHED = {"torch", "numpy", "ipykernel", "ipython", "ipywidgets", "jupyter-client", "jupyter_client", "tornado"}
TORCH = """
import time
from types import SimpleNamespace
dtype = autocast = object
device = lambda name: SimpleNamespace(type=name)
class ones:  # whose products take no time in 16 bits
    def __init__(self, shape, dtype, device): self.dtype = dtype
    def __matmul__(self, other): time.sleep(0.01 * self.dtype.endswith("32")); return self
    def __getitem__(self, at): return self
    def item(self): return 1.0
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


@pytest.mark.skipif(os.name == "nt", reason="Colab is Linux")
def test_the_first_cell_tells_the_gpu_and_the_dtype_and_asks_pip_for_what_lacks(tmp_path):
    """The notebooks' own first cell where torch says T4 and pip writes its calls down."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "image"], check=True)
    python = tmp_path / "image" / "bin" / "python"
    site = next(tmp_path.glob("image/lib/python3*/site-packages"))
    for package, version in IMAGE.items():
        about = site / f"{package.replace('-', '_')}-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n", "utf-8")
    shutil.copytree(Path(packaging.__file__).parent, site / "packaging")
    for module, code in (("torch", TORCH), ("pip", PIP)):
        (site / f"{module}.py").write_text(code, "utf-8")
    for name in ("lib", "notebooks", "pyproject.toml", "requirements.txt"):
        source, target = profile.ROOT / name, tmp_path / "content" / "project" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    cells = jupytext.read(profile.ROOT / "notebooks" / "02_finetune.py").cells
    (cell,) = [c.source for c in cells if c.cell_type == "code" and "google.colab" in c.source]
    code = COLAB + cell.replace("/content", str(tmp_path / "content")) + "\nimport lib.profile"
    environment = {n: v for n, v in os.environ.items() if n not in ("PYTHONPATH", "PROFILE")}
    lost = subprocess.run([python, "-c", code.replace("/content", "/nothing")], capture_output=True, encoding="utf-8")
    assert lost.returncode == 1 and lost.stderr.count("\n") == 1 and "upload the project's zip" in lost.stderr
    run = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, encoding="utf-8", env=environment)
    assert run.returncode == 0, run.stderr
    *calls, shown = run.stdout.split("\n", 2)
    installs, uninstalls = map(json.loads, calls)
    assert "Tesla T4; computing in float16." in shown
    assert "torch 2.11.0+cu128, numpy 2.0.2 as they were" in shown and "Google Drive is not mounted" in shown
    names = {re.match(r"[\w-]*", line)[0] for line in installs["wanted"]}
    assert {"transformers", "peft", "sacrebleu"} <= names and not names & (UNTOUCHED | {"pytest", "ruff", "typst"})
    assert {f"{name}=={IMAGE[name.replace('-', '_')]}" for name in colab.KEEP} == set(installs["held"])
    assert uninstalls["arguments"] == ["uninstall", "-q", "-y", "torchao"]
