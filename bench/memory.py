"""How much memory a stretch of this process takes, and how much of that is pages of mapped files."""

import contextlib
import ctypes
import gc
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_SELF = Path("/proc/self")


def status() -> dict[str, int]:
    """Bytes by the kernel's names: VmRSS, VmHWM, RssFile …; empty where there is no /proc."""
    try:
        lines = (_SELF / "status").read_text().splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines if line.endswith(" kB"))
    return {name.rstrip(":"): int(value) * 1024 for name, value, _ in fields}


class Usage:
    """Resident memory from now on. Its peak starts anew, where the system allows that."""

    def __init__(self) -> None:
        with contextlib.suppress(OSError):
            (_SELF / "clear_refs").write_text("5")
        self._before = status()

    def describe(self, file_bytes: int) -> str:
        """The peak since then in one line, beside the size of the file that was mapped."""
        after = status()
        if not self._before or not after:
            unit = 1 if sys.platform == "darwin" else 1024
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
            return f"peak {_mb(peak)} since the start; the file has {_mb(file_bytes)}"
        pages = after["RssFile"] - self._before["RssFile"]
        own = max(after["VmHWM"] - self._before["VmRSS"] - pages, 0)
        return (
            f"peak {_mb(after['VmHWM'])} = {_mb(self._before['VmRSS'])} before + {_mb(pages)} pages of the "
            f"{_mb(file_bytes)} file + {_mb(own)} its own"
        )


class Extra:
    """A call that measures the peak of what it takes beyond what was there, its result included.

    On the CPU by pages of this process: what the heap had free is given back first, so that it counts anew.
    `warm` runs before, so that the pages of code do not count. Scratch that a kernel keeps from one call to
    the next counts at the first.
    """

    def __init__(
        self, call: Callable[[], Any], warm: Callable[[], object] | None, device: torch.device
    ) -> None:
        self.bytes: int | None = None  # None: not called yet, or a system that does not tell
        self._call, self._warm, self._device = call, warm, device

    def __call__(self) -> Any:
        if self._warm is not None:
            self._warm()
        gc.collect()
        if self._device.type == "cuda":
            before = torch.cuda.memory_allocated(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            result = self._call()
            self.bytes = torch.cuda.max_memory_allocated(self._device) - before
            return result
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)  # of glibc
        with contextlib.suppress(OSError):
            (_SELF / "clear_refs").write_text("5")  # the peak starts anew
        before = status().get("VmRSS", 0)
        result = self._call()
        self.bytes = max(status()["VmHWM"] - before, 0) if before else None
        return result


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.0f} MB"


def available_bytes() -> int | None:
    """What can be allocated without swapping; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
