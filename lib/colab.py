"""`python -m lib colab`: a Colab session made ready: what it lacks is installed, its GPU and number format are told.

Results, figures and ratings go to Google Drive where it is mounted (`lib.profile.kept_root`).
"""

import importlib.metadata
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from packaging.requirements import Requirement
from packaging.version import Version

from lib import profile

# torch and numpy fit Colab's GPU driver and each other: another pair costs gigabytes. The others are the session
# itself: it runs on these, and its page draws widgets of ipywidgets 7 only (googlecolab/colabtools issue 4525).
KEEP = ("torch", "numpy", "ipykernel", "ipython", "ipywidgets", "jupyter-client", "tornado")
TORCHAO = Version("0.16.0")  # peft refuses an older one, which Colab has and nothing here uses


def installed(name: str) -> str | None:
    """The version of a package of this Python, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def lacking(requirements: str) -> list[str]:
    """The lines of requirements.txt that what is installed does not satisfy, KEEP and -e lines left out."""
    lines = [line.split("#")[0].strip() for line in requirements.splitlines()]
    wanted = [Requirement(line) for line in lines if line and not line.startswith("-")]
    wanted = [r for r in wanted if r.name not in KEEP]
    here = {r.name: installed(r.name) for r in wanted}
    return [str(r) for r in wanted if not here[r.name] or not r.specifier.contains(here[r.name], prereleases=True)]


def install(root: Path) -> int:
    """Install `root` and what its requirements.txt lacks, with KEEP held as they are; returns how many it lacked.

    Raises CalledProcessError, with pip's own words above it, where that can't be.
    """
    wanted = lacking((root / "requirements.txt").read_text(encoding="utf-8"))
    held = [f"{name}=={version}" for name in KEEP if (version := installed(name))]
    pip = [sys.executable, "-m", "pip"]
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("\n".join(held), encoding="utf-8")
        subprocess.run([*pip, "install", "-q", "-c", constraints, *wanted, "-e", str(root)], check=True)
    if (torchao := installed("torchao")) and Version(torchao) < TORCHAO:
        subprocess.run([*pip, "uninstall", "-q", "-y", "torchao"], check=True)
    return len(wanted)


def setup() -> None:
    """`install`, then say what the session computes on and where its results stay."""
    count = install(profile.ROOT)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    dtype = str(profile.autocast_dtype()).removeprefix("torch.")
    print(f"{gpu or 'No GPU (Runtime, Change runtime type, T4)'}; computing in {dtype}.")
    versions = ", ".join(f"{name} {installed(name)}" for name in KEEP[:2])
    print(f"Installed {count} packages; {versions} as they were.")
    if (kept := profile.kept_root()) != profile.output_root():
        print(f"Results, figures and ratings are kept on Google Drive: {kept};")
        print("copy that folder over the checkout before `python -m lib report`.")
    else:
        print("Google Drive is not mounted: results go when the session ends.")
        print("To keep them, mount it (the folder at the left) and run this cell again.")
