"""`python -m lib colab`: install what a Colab session lacks, never touching its torch and numpy."""

import importlib.metadata
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.requirements import Requirement

KEEP = ("torch", "numpy")  # Colab's fit its GPU driver and each other; another pair costs gigabytes


def lacking(requirements: str) -> list[str]:
    """The lines of requirements.txt that what is installed does not satisfy, KEEP and -e lines left out."""
    out = []
    for line in requirements.splitlines():
        text = line.split("#")[0].strip()
        if not text or text.startswith("-"):
            continue
        requirement = Requirement(text)
        if requirement.name in KEEP:
            continue
        try:
            if requirement.specifier.contains(importlib.metadata.version(requirement.name), True):
                continue
        except importlib.metadata.PackageNotFoundError:
            pass
        out.append(text)
    return out


def setup() -> None:
    """Install the lacking requirements under constraints that hold KEEP at the installed versions."""
    root = Path(__file__).resolve().parent.parent
    wanted = lacking((root / "requirements.txt").read_text(encoding="utf-8"))
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.write("\n".join(f"{name}=={importlib.metadata.version(name)}" for name in KEEP))
        constraints.flush()
        pip = [sys.executable, "-m", "pip", "install", "-q", "-c", constraints.name]
        if wanted:
            subprocess.run([*pip, *wanted], check=True)
        subprocess.run([*pip, "--no-deps", "-e", str(root)], check=True)
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"Installed {len(wanted)} packages; torch {torch.__version__} untouched; {device}.")
