"""Ranks that are threads of one process: rows are handed over in memory."""

import time
from typing import NamedTuple

import torch
from torch import Tensor

from moela.ep.errors import EpPeerLost, EpTimeout
from moela.ep.rendezvous import Member
from moela.ep.transports.base import Header, HostTransport, Received, Setup, Transport, expect_agreement
from moela.ep.transports.local_device import LocalDeviceTransport
from moela.ep.wire import wire_format


class _Parcel(NamedTuple):
    """What one rank sends in one epoch, for all."""

    header: Header  # its count is not used
    wire: Tensor | None  # [m, row_bytes], in send order; None: an abort
    counts: list[int]


class _Mailbox:
    """Of one buffer, for all ranks; guarded by the group's condition."""

    def __init__(self) -> None:
        self.parcels: dict[int, dict[int, _Parcel]] = {}  # by epoch and sender
        self.num_released: dict[int, int] = {}  # by epoch
        self.closed: set[int] = set()


class LocalTransport(HostTransport):
    name = "local"

    @classmethod
    def on(cls, device: torch.device) -> type[Transport]:
        return LocalDeviceTransport if device.type == "cuda" else cls

    def __init__(self, setup: Setup) -> None:
        self.rank, self.num_ranks = setup.rank, setup.num_ranks
        self._group, self._deadline, self._ranks = setup.local, setup.deadline, setup.ranks
        with self._group.condition:
            self._mailbox = self._group.shared.setdefault((setup.key, self.name), _Mailbox())

    @staticmethod
    def why_not() -> str | None:
        return None

    @staticmethod
    def unfit(members: list[Member], is_local: bool) -> str | None:
        if not is_local:
            return "the ranks are processes"
        other = next((r for r, m in enumerate(members) if m.device != members[0].device), None)
        return other and f"rank {other} is on another device than rank 0"

    def send(self, epoch: int, text: str, columns: list[Tensor], send_rows: Tensor, counts: Tensor) -> None:
        form, counts = wire_format(tuple(c.size(1) for c in columns)), counts.tolist()
        wire = form.pack(columns, send_rows, sum(counts))
        self._put(epoch, _Parcel(Header(epoch, 0, form.row_bytes, False, text), wire, counts))

    def abort(self, epoch: int, reason: str) -> None:
        self._put(epoch, _Parcel(Header(epoch, 0, 0, True, reason), None, []))

    def _put(self, epoch: int, parcel: _Parcel) -> None:
        with self._group.condition:
            self._mailbox.parcels.setdefault(epoch, {})[self.rank] = parcel
            self._group.condition.notify_all()

    def receive(self, epoch: int) -> Received:
        by_sender = self._wait_for(epoch)
        parcels = [by_sender[rank] for rank in range(self.num_ranks)]
        try:
            expect_agreement([parcel.header for parcel in parcels], self._ranks)
        except ValueError:
            self.release(epoch)
            raise
        counts = [parcel.counts[self.rank] for parcel in parcels]
        firsts = [sum(parcel.counts[: self.rank]) for parcel in parcels]
        rows = [p.wire[first : first + n] for p, first, n in zip(parcels, firsts, counts, strict=True)]
        ends = torch.tensor(counts, dtype=torch.int32).cumsum(0, dtype=torch.int32)
        counts = torch.tensor(counts, dtype=torch.int32)
        return Received(torch.cat(rows), ends - counts, counts)

    def _wait_for(self, epoch: int) -> dict[int, _Parcel]:
        end = time.monotonic() + self._deadline
        with self._group.condition:
            while True:
                by_sender = self._mailbox.parcels.get(epoch, {})
                missing = [rank for rank in range(self.num_ranks) if rank not in by_sender]
                if not missing:
                    return by_sender
                lost = [r for r in missing if r in self._mailbox.closed or self._ranks[r] in self._group.gone]
                if lost:
                    raise EpPeerLost(lost, epoch, "it has ended or closed its buffer")
                left = end - time.monotonic()
                if left <= 0:
                    raise EpTimeout(missing, epoch, f"nothing came within {self._deadline:g} s")
                self._group.condition.wait(left)

    def release(self, epoch: int) -> None:
        with self._group.condition:
            released = self._mailbox.num_released
            released[epoch] = released.get(epoch, 0) + 1
            if released[epoch] == self.num_ranks:
                del released[epoch], self._mailbox.parcels[epoch]

    def close(self) -> None:
        with self._group.condition:
            self._mailbox.closed.add(self.rank)
            self._group.condition.notify_all()
