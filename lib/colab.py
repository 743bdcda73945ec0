"""`python -m lib colab`: a Colab session made ready: what it lacks is installed, its GPU and number format are told."""

import importlib.metadata
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from packaging.version import Version

from lib import profile

# torch and numpy fit Colab's GPU driver and each other: another pair costs gigabytes. The others are the session
# itself: it runs on these, and its page draws widgets of ipywidgets 7 only (googlecolab/colabtools issue 4525).
KEEP = ("torch", "numpy", "ipykernel", "ipython", "ipywidgets", "jupyter-client", "tornado")
NOT_HERE = "# For the report's export"  # begins the lines of requirements.txt that no notebook needs
TORCHAO = Version("0.16.0")  # peft refuses an older one, which Colab has and nothing here uses


def setup() -> None:
    """Install the project and what its notebooks need of requirements.txt, KEEP left out and held as they are (pip
    leaves alone what satisfies it), then say what the session computes on and where its results stay.

    Raises CalledProcessError, with pip's own words above it, where that can't be."""
    found = {d.name.lower().replace("_", "-"): d.version for d in importlib.metadata.distributions()}
    lines = (profile.ROOT / "requirements.txt").read_text(encoding="utf-8").partition(NOT_HERE)[0].splitlines()
    wanted = [line for line in lines if not line.startswith("-e") and re.split(r"[<>=~! ]", line)[0] not in KEEP]
    held = [f"{name}=={found[name]}" for name in KEEP if name in found]
    pip = [sys.executable, "-m", "pip"]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for name, content in (("wanted", wanted), ("held", held)):
            Path(folder, f"{name}.txt").write_text("\n".join(content), encoding="utf-8")
        files = ["-r", f"{folder}/wanted.txt", "-c", f"{folder}/held.txt"]
        subprocess.run([*pip, "install", "-q", *files, "-e", str(profile.ROOT)], check=True)
    if Version(found.get("torchao", "9")) < TORCHAO:
        subprocess.run([*pip, "uninstall", "-q", "-y", "torchao"], check=True)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    dtype = str(profile.autocast_dtype()).removeprefix("torch.")
    print(f"{gpu or 'No GPU (Runtime, Change runtime type, T4)'}; computing in {dtype}.")
    print(f"torch {found['torch']}, numpy {found['numpy']} as they were.")
    if (kept := profile.kept_root()) != profile.output_root():
        print(f"Results, figures and ratings are kept on Google Drive: {kept};")
        print("copy that folder over the checkout before `python -m lib report`.")
    else:
        print("Google Drive is not mounted: results go when the session ends.")
        print("To keep them, mount it (the folder at the left) and run this cell again.")
