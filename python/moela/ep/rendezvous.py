"""How the ranks of a buffer find each other before there is a transport: values in a store of torch."""

import contextlib
import json
import os
import platform
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist

from moela.ep.errors import EpTimeout


class Member(NamedTuple):
    """The process of a rank, and where its tensors are."""

    host: str  # equal where processes see each other's pids and /dev/shm
    pid: int
    start: int  # when the process began, in the kernel's clock ticks: a pid alone may be another's by now
    node: str  # equal where ranks are neighbours: on a host, unless the user says otherwise
    device: str = "cpu"  # of its tensors

    @classmethod
    def of_this_process(cls, node: str | None = None, device: str = "cpu") -> "Member":
        start = start_of(os.getpid()) or 0
        return cls(_host(), os.getpid(), start, _host() if node is None else node, device)

    def is_alive(self) -> bool:
        """Whether the process runs. Of a process of another host: True, for lack of knowledge."""
        return self.host != _host() or start_of(self.pid) == self.start


def start_of(pid: int) -> int | None:
    """The start time of a process, 0 where the system does not tell, None: there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])  # a zombie does not answer either
    except OSError:
        return None if Path("/proc/self/stat").exists() else 0


def _host() -> str:
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").stat().st_ino))
        parts.append(str(Path("/dev/shm").stat().st_dev))
    return "/".join(parts)


class Rendezvous:
    """A part of a store that belongs to one buffer, the same on every rank."""

    def __init__(self, store: "dist.Store", key: str, rank: int, num_ranks: int, deadline: float) -> None:
        self.store = dist.PrefixStore(key, store)
        self.rank, self.num_ranks, self.deadline = rank, num_ranks, deadline

    def gather(self, step: str, value: Any) -> list[Any]:
        """The value (of json) that each rank gives for this step, by rank. Raises EpTimeout."""
        keys = [f"{step}/{rank}" for rank in range(self.num_ranks)]
        self.store.set(keys[self.rank], json.dumps(value))
        try:
            self.store.wait(keys, timedelta(seconds=self.deadline))
        except RuntimeError:
            missing = [rank for rank, key in enumerate(keys) if not self.store.check([key])]
            detail = f"it did not build its EpBuffer ({step}) within {self.deadline:g} s"
            raise EpTimeout(missing, 0, detail) from None
        return [json.loads(self.store.get(key)) for key in keys]


class Notes:
    """What ranks leave for each other in the store of their buffer, for when something has gone wrong."""

    def __init__(self, store: "dist.Store") -> None:
        self._store = dist.PrefixStore("notes", store)

    def set(self, key: str, text: str) -> None:
        with contextlib.suppress(RuntimeError):  # the store may be gone with its rank
            self._store.set(key, text)

    def get(self, key: str) -> str | None:
        with contextlib.suppress(RuntimeError):
            return self._store.get(key).decode() if self._store.check([key]) else None
        return None
