"""How much memory a stretch of this process takes, and how much of that is pages of mapped files."""

import contextlib
import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

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


class Taken(NamedTuple):
    """Resident bytes beyond those of before: the peak of all, and at the end pages of files and the rest."""

    peak: int
    pages: int
    own: int


class Usage:
    """Resident memory from now on. Its peak starts anew, where the system allows that."""

    def __init__(self) -> None:
        give_back()
        _restart_peak()
        self._before = status()

    def taken(self) -> Taken | None:
        """Since then; None where the system does not tell."""
        before, after = self._before, status()
        if not before or not after:
            return None
        pages = after["RssFile"] - before["RssFile"]
        own = after["RssAnon"] - before["RssAnon"]
        return Taken(max(after["VmHWM"] - before["VmRSS"], 0), pages, own)


def give_back() -> None:
    """To the system, what was freed."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)  # of glibc


def _restart_peak() -> None:
    with contextlib.suppress(OSError):
        (_SELF / "clear_refs").write_text("5")


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
        if self._device.type == "cuda":
            gc.collect()
            before = torch.cuda.memory_allocated(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            result = self._call()
            self.bytes = torch.cuda.max_memory_allocated(self._device) - before
            return result
        give_back()
        _restart_peak()
        before = status().get("VmRSS", 0)
        result = self._call()
        self.bytes = max(status()["VmHWM"] - before, 0) if before else None
        return result


def available_bytes() -> int | None:
    """What can be allocated without swapping; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
