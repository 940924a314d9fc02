"""all_to_all of torch.distributed: every device and network that it knows.

Two rounds per epoch. The headers, which hold the counts, go over a Gloo group of the buffer's own, posted
when the epoch begins, so that an abort needs no waiting; the rows follow when they are received, over a
second one, or over the user's group where they are not in the memory of the host. Each group sees its rounds
in the order of the epochs on every rank, however sends and receives are interleaved.
"""

import contextlib
import time
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from moela.ep.errors import EpError, EpPeerLost, EpTimeout
from moela.ep.rendezvous import Member
from moela.ep.transports.base import (
    HEADER_BYTES,
    Header,
    HostTransport,
    Received,
    Setup,
    expect_agreement,
    not_in_host_memory,
)
from moela.ep.wire import wire_format

GRACE = 2.0  # seconds in which a rank that is alive notices that a connection broke


class _Posted(NamedTuple):
    """An epoch that this rank has begun."""

    theirs: Tensor  # [R, HEADER_BYTES]: arrives with `work`
    mine: Tensor  # kept until then
    work: "dist.Work"
    wire: Tensor | None  # [m, row_bytes], in send order; None: an abort
    counts: list[int]


class CollectiveTransport(HostTransport):
    name = "collective"

    def __init__(self, setup: Setup) -> None:
        self.rank, self.num_ranks = setup.rank, setup.num_ranks
        self._setup, self._group = setup, setup.group
        timeout = timedelta(seconds=setup.deadline)
        self._headers, self._rows = (
            dist.ProcessGroupGloo(dist.PrefixStore(name, setup.store), self.rank, self.num_ranks, timeout)
            for name in ("headers", "rows")
        )
        self._posted: dict[int, _Posted] = {}
        self._has_failed = False

    @staticmethod
    def why_not() -> str | None:
        return None if dist.is_available() and dist.is_gloo_available() else "torch has no Gloo"

    @staticmethod
    def unfit(members: list[Member], is_local: bool) -> str | None:
        return not_in_host_memory(members) if is_local else None

    def send(self, epoch: int, text: str, columns: list[Tensor], send_rows: Tensor, counts: Tensor) -> None:
        form, counts = wire_format(tuple(c.size(1) for c in columns)), counts.tolist()
        wire = form.pack(columns, send_rows, sum(counts))
        self._post(epoch, [Header(epoch, n, form.row_bytes, False, text) for n in counts], wire, counts)

    def abort(self, epoch: int, reason: str) -> None:
        self._post(epoch, [Header(epoch, 0, 0, True, reason)] * self.num_ranks, None, [])

    def _post(self, epoch: int, headers: list[Header], wire: Tensor | None, counts: list[int]) -> None:
        mine = torch.frombuffer(bytearray().join(h.pack() for h in headers), dtype=torch.uint8)
        mine = mine.view(self.num_ranks, HEADER_BYTES)
        theirs = torch.empty_like(mine)
        try:
            work = self._headers.alltoall_base(theirs, mine, [], [])
        except RuntimeError as error:
            raise self._diagnosis(epoch, error) from error
        self._posted[epoch] = _Posted(theirs, mine, work, wire, counts)

    def receive(self, epoch: int) -> Received:
        posted = self._posted.pop(epoch)
        try:
            posted.work.wait()
            headers = [Header.unpack(row.numpy().tobytes()) for row in posted.theirs]
            expect_agreement(headers, self._setup.ranks)
            counts = [header.count for header in headers]
            wire = posted.wire.new_empty((sum(counts), posted.wire.size(1)))
            self._exchange(wire, posted.wire, counts, posted.counts)
        except RuntimeError as error:
            raise self._diagnosis(epoch, error) from error
        counts = torch.tensor(counts, dtype=torch.int32)
        return Received(wire, counts.cumsum(0, dtype=torch.int32) - counts, counts)

    def _exchange(self, out: Tensor, mine: Tensor, out_counts: list[int], counts: list[int]) -> None:
        if mine.device.type == "cpu":
            self._rows.alltoall_base(out, mine, out_counts, counts).wait()
        else:
            dist.all_to_all_single(out, mine, out_counts, counts, group=self._group)

    def release(self, epoch: int) -> None:
        """Nothing to do: what was received is this rank's own memory."""

    def close(self) -> None:
        if not self._has_failed:  # else another is to blame
            with contextlib.suppress(RuntimeError):  # the store may be gone with its rank
                self._setup.store.set(f"closed/{self.rank}", "")
        for posted in self._posted.values():
            with contextlib.suppress(RuntimeError):  # an abort on its way; it may be too late for it
                posted.work.wait()
        self._posted.clear()
        self._headers = self._rows = None

    def _diagnosis(self, epoch: int, error: RuntimeError) -> EpError:
        """Which ranks are to blame that an epoch failed: every survivor says in the store that it is one.

        Gloo only tells that a connection broke, and closes its others then: that reaches all ranks within
        moments, whichever is to blame.
        """
        self._has_failed = True
        store, me = self._setup.store, self.rank
        others = [rank for rank in range(self.num_ranks) if rank != me]
        detail = str(error).splitlines()[0].split("] ", 1)[-1].split(". This is typically")[0]
        end = time.monotonic() + min(GRACE, self._setup.deadline)
        silent = others
        with contextlib.suppress(RuntimeError):  # the store is gone with its rank
            store.set(f"failed/{me}", "")
            while silent and time.monotonic() < end:
                lost = [r for r in others if not self._setup.members[r].is_alive()]
                lost = lost or [r for r in others if store.check([f"closed/{r}"])]
                if lost:
                    break
                silent = [r for r in others if not store.check([f"failed/{r}"])]
                time.sleep(0.01)
        lost = [r for r in others if not self._setup.members[r].is_alive()]
        with contextlib.suppress(RuntimeError):
            lost = lost or [r for r in others if store.check([f"closed/{r}"])]
            if silent and not lost:
                store.set(f"late/{me}", ",".join(map(str, silent)))
            for rank in others if not silent else []:
                if store.check([f"late/{rank}"]):  # this rank may be among those that others gave up on
                    silent = [int(r) for r in store.get(f"late/{rank}").split(b",")]
        return EpPeerLost(lost, epoch, detail) if lost else EpTimeout(silent, epoch, detail)
