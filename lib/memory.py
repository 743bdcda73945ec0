"""Peak memory of a stretch of work, and what is left for one."""

import contextlib
import ctypes
import gc
import math
import sys
from pathlib import Path

import psutil
import torch


def reset_peak_memory() -> None:
    """Start a new high-water mark, with freed memory given back first where the platform can."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, proc(5)


def peak_megabytes() -> float:
    """High-water mark in MB (10^6 bytes): of GPU memory, or else of the process's resident memory.

    Linux counts from `reset_peak_memory`; elsewhere the mark is the process's whole life's.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    try:
        import resource
    except ImportError:  # Windows has no resource module
        return math.nan
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes on macOS


def available_megabytes() -> float:
    """MB (10^6 bytes) that this process can still take: of the GPU's memory, or else of the machine's."""
    if torch.cuda.is_available():
        kept = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return (torch.cuda.mem_get_info()[0] + kept) / 1e6
    return psutil.virtual_memory().available / 1e6
