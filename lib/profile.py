"""Which profile this is, and what follows for every notebook: budgets, device, number format, where files go.

`PROFILE=fast|cpu|full` in the environment chooses; without it `full` with a GPU and `cpu` without.
"""

import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch

ROOT = Path(__file__).resolve().parent.parent  # the checkout: `lib` is installed editable
DATA = ROOT / "data"
NAMES = ("fast", "cpu", "full")
DRIVE = Path("/content/drive/MyDrive")  # where Colab mounts Google Drive


def name() -> str:
    """`fast`, `cpu` or `full`: the environment's PROFILE, else `full` with a GPU or for stored results, else `cpu`.
    Raises ValueError for another name."""
    chosen = os.environ.get("PROFILE")
    if not chosen:
        return "full" if torch.cuda.is_available() or os.environ.get("RESULTS") == "stored" else "cpu"
    if chosen not in NAMES:
        raise ValueError(f"PROFILE={chosen!r} is unknown; choose one of {', '.join(NAMES)}.")
    return chosen


def budget(**sizes: tuple) -> SimpleNamespace:
    """This profile's numbers of a notebook, each given as (fast, cpu, full)."""
    at = NAMES.index(name())
    return SimpleNamespace(**{key: triple[at] for key, triple in sizes.items()})


def output_root() -> Path:
    """Where results, figures and trained weights go: the checkout, or for `fast` a temporary folder (`FAST_OUTPUT`
    names it), so that a test run never touches what the report shows."""
    if name() != "fast":
        return ROOT
    default = Path(tempfile.gettempdir()) / f"gpt2-coursework-fast-{os.getuid() if hasattr(os, 'getuid') else 0}"
    return Path(os.environ.get("FAST_OUTPUT") or default)


def kept_root() -> Path:
    """Where results, figures, executed notebooks and ratings go: on Colab a folder of Google Drive if that is mounted;
    else `output_root()`. Checkpoints never go to Drive: those that training deletes would fill its bin."""
    root = output_root()
    return DRIVE / "gpt2-coursework" if root == ROOT and DRIVE.is_dir() else root


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast_dtype() -> torch.dtype:
    """bfloat16 where the hardware computes in it (GPUs from compute capability 8.0, CPUs with its instructions: torch's
    own is_bf16_supported also counts emulation), float16 on older GPUs (a T4), float32 otherwise."""
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16
    has_bf16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if has_bf16 else torch.float32


def autocast() -> torch.autocast:
    """Autocast to `autocast_dtype()` on `device()`; a no-op for float32."""
    dtype = autocast_dtype()
    return torch.autocast(device().type, dtype=dtype, enabled=dtype != torch.float32)
