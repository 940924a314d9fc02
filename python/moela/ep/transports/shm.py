"""Processes of one host: rows are written straight into memory that all of them map.

The memory is a file without a name (memfd), which rank 0 makes and the others open through its entry in
/proc: nothing is left behind however a rank ends, and /dev/shm, a few megabytes in most containers, does not
matter. Pages exist once they are used. Which epoch is where, and who may touch what when:
csrc/ep/mailboxes.h.
"""

import mmap
import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor

from moela.ep import mailboxes
from moela.ep.errors import EpError, EpPeerLost, EpTimeout
from moela.ep.mailboxes import Mailboxes
from moela.ep.rendezvous import Member
from moela.ep.rows import pack
from moela.ep.transports.base import (
    HEADER_BYTES,
    Header,
    HostTransport,
    Received,
    Setup,
    expect_agreement,
    expect_room,
    not_in_host_memory,
    not_on_one_host,
)
from moela.ep.wire import wire_format

PLACES = 2  # epochs whose rows are there at a time
SLICE = 0.01  # seconds between two looks at whether the ranks that are missing are alive
PAGE = mmap.PAGESIZE


class ShmTransport(HostTransport):
    name = "shm"

    def __init__(self, setup: Setup) -> None:
        self.rank, self.num_ranks = setup.rank, setup.num_ranks
        self._setup = setup
        self._first_row = -(-mailboxes.num_bytes(setup.num_ranks) // PAGE) * PAGE
        self._max_tokens = setup.max_tokens
        self._place_bytes = self.num_ranks**2 * setup.max_tokens * setup.row_bytes
        size = self._first_row + PLACES * self._place_bytes
        self._file, memory = _make(setup, size) if self.rank == 0 else _open(setup, size)
        self._bytes = torch.frombuffer(memory, dtype=torch.uint8)
        self._boxes = Mailboxes(self._bytes, self.num_ranks, self.rank)
        self._boxes.join(1)
        mine = torch.arange(self.rank * self.num_ranks, (self.rank + 1) * self.num_ranks, dtype=torch.int32)
        self._starts = mine * setup.max_tokens  # of the rows that each rank sends here

    @staticmethod
    def why_not() -> str | None:
        return mailboxes.why_not()

    @staticmethod
    def unfit(members: list[Member], is_local: bool) -> str | None:
        if len(members) > mailboxes.MAX_RANKS:
            return f"expected at most {mailboxes.MAX_RANKS} ranks, got {len(members)}"
        return not_in_host_memory(members) or not_on_one_host(members)

    def send(self, epoch: int, text: str, columns: list[Tensor], send_rows: Tensor, counts: Tensor) -> None:
        form, counts = wire_format(tuple(c.size(1) for c in columns)), counts.tolist()
        expect_room(self._setup, max(counts), form.row_bytes)
        self._wait(epoch, lambda seconds: self._boxes.await_releases(epoch - PLACES, seconds))
        starts = [(to * self.num_ranks + self.rank) * self._max_tokens for to in range(self.num_ranks)]
        pack(columns, send_rows, form.offsets, counts, starts, self._rows(epoch, form.row_bytes))
        self._post(epoch, [Header(epoch, n, form.row_bytes, False, text) for n in counts])

    def abort(self, epoch: int, reason: str) -> None:
        self._post(epoch, [Header(epoch, 0, 0, True, reason)] * self.num_ranks)

    def _post(self, epoch: int, headers: list[Header]) -> None:
        self._boxes.post(epoch, b"".join(header.pack() for header in headers))

    def receive(self, epoch: int) -> Received:
        self._wait(epoch, lambda seconds: self._boxes.await_posts(epoch, seconds))
        raw = self._boxes.read_headers(epoch)
        headers = [Header.unpack(raw[i : i + HEADER_BYTES]) for i in range(0, len(raw), HEADER_BYTES)]
        try:
            expect_agreement(headers, self._setup.ranks)
        except ValueError:
            self.release(epoch)
            raise
        counts = torch.tensor([header.count for header in headers], dtype=torch.int32)
        return Received(self._rows(epoch, headers[0].row_bytes), self._starts, counts)

    def release(self, epoch: int) -> None:
        self._boxes.release(epoch)

    def close(self) -> None:
        """The memory is given back when nothing refers to it any more."""
        if self._bytes is None:
            return
        self._boxes.leave(None)
        self._bytes = self._boxes = None
        if self._file is not None:
            os.close(self._file)

    def _rows(self, epoch: int, row_bytes: int) -> Tensor:
        """All that is sent in the epoch, by receiver, sender and row: [R * R * max_tokens, row_bytes].

        Ranks that disagree about row_bytes write over each other's rows, and find out when they receive.
        """
        first = self._first_row + epoch % PLACES * self._place_bytes
        num_rows = self.num_ranks**2 * self._max_tokens
        return self._bytes[first : first + num_rows * row_bytes].view(num_rows, row_bytes)

    def _wait(self, epoch: int, missing_after: Callable[[float], list[int]]) -> None:
        """Until no rank is missing; raises when one never will be there, or at the deadline."""
        end = time.monotonic() + self._setup.deadline
        while missing := missing_after(SLICE):
            error = self._failure(missing, epoch, time.monotonic() >= end)
            # What a rank posted before it ended is visible now.
            if error and missing_after(0):
                self._boxes.leave(error.ranks[0] if isinstance(error, EpTimeout) else None)
                raise error
            if error:
                return

    def _failure(self, missing: list[int], epoch: int, is_late: bool) -> EpError | None:
        left = [rank for rank in missing if self._boxes.has_left(rank)]
        # Whoever has left may have done so because it lost another rank: then that one is to blame.
        lost = [rank for rank in (range(self.num_ranks) if left else missing) if self._has_ended(rank)]
        if lost:
            return EpPeerLost(lost, epoch, "it has ended")
        suspects = {self._boxes.suspect_of(rank) for rank in left} - {None, self.rank}
        if suspects:
            return EpTimeout(sorted(suspects), epoch, "a rank that waited in vain has left")
        if left:
            return EpPeerLost(left, epoch, "it has closed its buffer, or given up on this rank")
        return (
            EpTimeout(missing, epoch, f"nothing came within {self._setup.deadline:g} s") if is_late else None
        )

    def _has_ended(self, rank: int) -> bool:
        local = self._setup.local
        return not self._setup.members[rank].is_alive() or (
            local is not None and self._setup.ranks[rank] in local.gone
        )


def _make(setup: Setup, size: int) -> tuple[int, mmap.mmap]:
    """The file, open until the transport is closed so that the others can open it too, and its memory."""
    path = ""
    try:
        free = _available_bytes()
        if size > free:
            raise ValueError(
                f"expected {size / 2**30:.2f} GiB of free memory for {setup.num_ranks} ranks of "
                f"{setup.max_tokens} tokens, got {free / 2**30:.2f} GiB; a smaller max_tokens helps"
            )
        file = os.memfd_create("moela_ep")
        os.ftruncate(file, size)
        path = f"/proc/{os.getpid()}/fd/{file}"
        return file, mmap.mmap(file, size)
    finally:
        setup.store.set("file", path)  # empty: it failed, and nobody waits for it


def _open(setup: Setup, size: int) -> tuple[None, mmap.mmap]:
    setup.store.wait(["file"], timedelta(seconds=setup.deadline))
    path = setup.store.get("file").decode()
    if not path:
        raise OSError("rank 0 made no memory")
    with Path(path).open("r+b") as file:
        return None, mmap.mmap(file.fileno(), size)


def _available_bytes() -> int:
    """Memory that can be used without swapping, of the machine and of this control group."""
    words = Path("/proc/meminfo").read_text().split()
    free = int(words[words.index("MemAvailable:") + 1]) * 1024
    group = Path("/sys/fs/cgroup")
    try:
        limit, used, words = (
            (group / f"memory.{name}").read_text().split() for name in ("max", "current", "stat")
        )
    except OSError:
        return free
    cached = int(words[words.index("inactive_file") + 1])  # part of what is used, and given up on demand
    return free if limit == ["max"] else min(free, int(limit[0]) - int(used[0]) + cached)
