"""The results contract: data/results/<notebook>.json, written atomically, with provenance.

Rows are flat, one measurement each, seeds not averaged: means and intervals are computed where they
are shown. `fast` writes below a temporary folder (lib.profile.kept_root).
"""

import datetime
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from lib import profile

PACKAGES = ("torch", "transformers", "tokenizers", "peft", "accelerate", "sacrebleu", "numpy", "scipy")


def start() -> float:
    """A started clock for `save`: call it in a notebook's first cell."""
    return time.monotonic()


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of `text` as UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write `path` whole or not at all: a temporary file beside it, flushed to disk, then renamed.

    Raises OSError with one sentence when the disk is full or the folder can't be written; what stood
    at `path` before stays.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide the results from a group's other members
        os.replace(temporary, path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        reason = error.strerror or str(error)
        raise OSError(
            error.errno, f"{path} was not written ({reason}); free space or choose a folder you own"
        ) from error
    except BaseException:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value) -> None:
    """`write_text` of `value` as indented JSON; NaN and infinities become null, which JSON can hold."""
    write_text(path, json.dumps(_plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _plain(value):
    """`value` in JSON's own types: NumPy numbers as Python's, NaN and infinities as None."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def git_commit() -> str:
    """The checkout's commit, with "+changes" where tracked files differ from it; "unknown" without git."""

    def run(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=profile.ROOT, capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        changed = run("status", "--porcelain", "--untracked-files=no", "--", "lib", "notebooks/*.py")
        return run("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def device_name() -> str:
    """The GPU's name, or the processor's with its thread count."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"CPU, {names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


def provenance(
    base=None, seeds: Sequence[int] = (), data: Mapping[str, str] | None = None, started: float | None = None
) -> dict:
    """Where the numbers come from: model, profile, seeds, machine, commit, versions, data hashes."""
    return {
        "base_model": base.name if base else None,
        "stand_in": base.stand_in if base else None,
        "parameters": base.parameters if base else None,
        "profile": profile.current().name,
        "seeds": list(seeds),
        "device": device_name(),
        "dtype": str(profile.autocast_dtype()).removeprefix("torch."),
        "git_commit": git_commit(),
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "wall_seconds": round(time.monotonic() - started, 1) if started is not None else None,
        "versions": {p: importlib.metadata.version(p) for p in PACKAGES},
        "data": dict(data or {}),
    }


def save(
    notebook: str,
    tables: Mapping[str, pd.DataFrame | Sequence[Mapping]],
    *,
    base=None,
    seeds: Sequence[int] = (),
    data: Mapping[str, str] | None = None,
    started: float | None = None,
) -> Path:
    """Write data/results/<notebook>.json and return its path.

    `tables` are lists of flat rows or data frames; `base` the lib.models.Base behind them; `data` the
    sha256 of each dataset; `started` what `start()` returned. Raises ValueError for a row that is not
    flat, OSError where the file can't be written (the previous one stays).
    """
    rows = {name: _rows(name, table) for name, table in tables.items()}
    path = profile.kept_root() / "data" / "results" / f"{notebook}.json"
    value = {"notebook": notebook, "provenance": provenance(base, seeds, data, started), "tables": rows}
    write_json(path, value)
    root = profile.kept_root()
    print(f"Results: {path.relative_to(root)} ({', '.join(f'{k} {len(v)}' for k, v in rows.items())} rows)")
    return path


def _rows(name: str, table) -> list[dict]:
    rows = table.to_dict("records") if isinstance(table, pd.DataFrame) else [dict(r) for r in table]
    for i, row in enumerate(rows):
        nested = [k for k, v in row.items() if isinstance(v, Mapping | list | tuple | set)]
        if nested:
            raise ValueError(f"Table {name!r}, row {i}: {nested[0]!r} is nested; results rows are flat.")
    return rows


def load(notebook: str, folder: Path | None = None) -> dict:
    """Read a results file back. Raises FileNotFoundError or ValueError naming the file and the way out."""
    path = (folder or profile.kept_root() / "data" / "results") / f"{notebook}.json"
    way_out = f"run `python -m lib run {notebook[:2]}`"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: {way_out}.")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): {way_out} again.") from error
    missing = [k for k in ("notebook", "provenance", "tables") if k not in value]
    if missing:
        raise ValueError(f"{path} has no {missing[0]!r}: {way_out} again.")
    return value
