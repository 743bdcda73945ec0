"""Which profile this is, and what follows for every notebook: budgets, device, number format, where files go."""

import contextlib
import functools
import os
import shutil
import tempfile
import time
import timeit
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch

ROOT = Path(__file__).resolve().parent.parent  # the checkout: `lib` is installed editable
DATA = ROOT / "data"
NAMES = ("fast", "cpu", "full")
GAIN = 1.2  # bfloat16 against float32 in a product, below which float32 stays
DRIVE = Path("/content/drive/MyDrive")  # where Colab mounts Google Drive


def name() -> str:
    """`fast`, `cpu` or `full`: the environment's PROFILE, else `full` with a GPU or for stored results, else `cpu`.
    Raises ValueError for another name."""
    chosen = os.environ.get("PROFILE", "").lower()
    if not chosen:
        return "full" if device().type == "cuda" or os.environ.get("RESULTS") else "cpu"
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


def replace(source: Path, target: Path) -> None:
    """Rename a file or folder, in the place of a file there; tried again for two seconds while another program has it
    open (Windows: Word, an antivirus, OneDrive), then PermissionError, and both stay."""
    _patiently(lambda: os.replace(source, target), f"{target} can't be replaced")


def remove(path: Path, needed: bool = True) -> None:
    """Remove a file, or a folder with all in it, if any, as patiently; not `needed`: a line names what stays."""
    folder = path.is_dir() and not path.is_symlink()
    change = (lambda: shutil.rmtree(path)) if folder else (lambda: path.unlink(missing_ok=True))
    _patiently(change, f"{path} can't be removed", needed)


def _patiently(change: Callable[[], None], failed: str, needed: bool = True) -> None:
    for pause in (0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0):
        try:
            return change()
        except PermissionError as error:
            why = f"{failed}: close the program that has it open, then try again"
            if not pause and needed:
                raise PermissionError(why) from error
            time.sleep(pause)
    return print(why)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `path` whole or not at all: a temporary file beside it, flushed to disk, then `replace`. Raises OSError in
    one sentence where the disk is full, the folder can't be written or the file is held; what stood there stays."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        replace(temporary, path)
    except OSError as error:
        if isinstance(error, PermissionError) and temporary.exists():  # the file is held, the folder is one's own
            raise
        why = f"{path} was not written ({error.strerror or error}); free space or choose a folder you own"
        raise OSError(error.errno, why) from error
    finally:
        with contextlib.suppress(OSError):
            remove(temporary, needed=False)


def device() -> torch.device:
    """The environment's DEVICE (cpu, cuda, mps: Apple's, untested), else the GPU that CUDA has, else the CPU."""
    return torch.device(os.environ.get("DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu"))


def product_seconds(dtype: torch.dtype) -> float:
    """Seconds of GPT-2's widest product, 256 tokens by 768 by 3,072, on `device()`: the best of three after one."""
    x, w = (torch.ones(shape, dtype=dtype, device=device()) for shape in ((256, 768), (768, 3_072)))
    # reading a number waits for a GPU
    return min(timeit.repeat(lambda: (x @ w)[0, 0].item(), number=1, repeat=4)[1:])


@functools.cache
def autocast_dtype() -> torch.dtype:
    """The environment's DTYPE (bfloat16, float16, float32), else what a product is measured to be fastest in on
    `device()`: float32 or bfloat16, for which float16 stands on GPUs before compute capability 8.0 (a T4).

    Once per process, a tenth of a second. No flag is asked: torch calls bfloat16 supported on every CPU with AVX-512,
    and without instructions for it a product takes four times as long as in float32."""
    if chosen := os.environ.get("DTYPE"):
        if chosen not in ("bfloat16", "float16", "float32"):
            raise ValueError(f"DTYPE={chosen!r} is unknown; choose one of bfloat16, float16, float32.")
        return getattr(torch, chosen)
    if device().type == "mps":
        return torch.float32  # where mixed precision is untested
    old = device().type == "cuda" and torch.cuda.get_device_capability() < (8, 0)
    half = torch.float16 if old else torch.bfloat16
    # a training step is more than products, and casts on the way into each: a small gain there is none
    return half if product_seconds(half) < product_seconds(torch.float32) / GAIN else torch.float32


def autocast() -> torch.autocast:
    """Autocast to `autocast_dtype()` on `device()`; a no-op for float32."""
    dtype = autocast_dtype()
    return torch.autocast(device().type, dtype=dtype, enabled=dtype != torch.float32)
