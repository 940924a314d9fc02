"""What a transport is: wire rows from every rank to every rank, one exchange (epoch) after another."""

import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from moela.ep.device import Kernels, Memory
from moela.ep.local import LocalGroup
from moela.ep.rendezvous import Member

HEADER_BYTES = 256
_FIXED = struct.Struct("<qqqq")  # epoch, count, row_bytes, is_abort
_TEXT_BYTES = HEADER_BYTES - _FIXED.size


class Header(NamedTuple):
    """What a rank tells each of its peers, and itself, at the beginning of an epoch."""

    epoch: int
    count: int  # rows that follow for that peer
    row_bytes: int
    is_abort: bool  # no rows follow: text is the reason
    # What the rows are ("ep_dispatch x=bfloat16[7168] ..."), the same on every rank of a correct program.
    text: str

    def pack(self) -> bytes:
        """HEADER_BYTES bytes: four little-endian int64, then the text in UTF-8 with zeros after it."""
        return _FIXED.pack(self.epoch, self.count, self.row_bytes, self.is_abort) + _text_bytes(self.text)

    @classmethod
    def unpack(cls, raw: bytes) -> "Header":
        epoch, count, row_bytes, is_abort = _FIXED.unpack_from(raw)
        text = raw[_FIXED.size : HEADER_BYTES].rstrip(b"\0").decode(errors="replace")
        return cls(epoch, count, row_bytes, bool(is_abort), text)


@lru_cache(maxsize=64)
def _text_bytes(text: str) -> bytes:
    raw = text.encode()
    if len(raw) > _TEXT_BYTES:  # what is cut off has to differ still
        raw = raw[: _TEXT_BYTES - 8] + f"{zlib.crc32(raw):08x}".encode()
    return raw.ljust(_TEXT_BYTES, b"\0")


def expect_agreement(headers: Sequence[Header], ranks: Sequence[int]) -> None:
    """Raise ValueError where a rank aborted the epoch, or the ranks do not do the same in it.

    headers: that of every rank, this one's too, by rank. ranks: what they are called. All ranks get the same
    words.
    """
    for header in headers:
        if header.is_abort:
            raise ValueError(header.text)
    first = headers[0]
    for rank, header in zip(ranks, headers, strict=True):
        for what in ("text", "epoch", "row_bytes"):
            mine, theirs = getattr(first, what), getattr(header, what)
            if mine != theirs:
                what = "exchange" if what == "text" else what
                raise ValueError(
                    f"ep: ranks disagree: expected the same {what} on all, got {mine!r} on rank "
                    f"{ranks[0]} and {theirs!r} on rank {rank}"
                )


class Received(NamedTuple):
    """The rows of one epoch at this rank: those of source s are wire[starts[s] : starts[s] + counts[s]]."""

    # All of it may be the transport's own memory: valid until release(epoch).
    wire: Tensor  # [*, row_bytes] uint8
    starts: Tensor  # [R] int32
    counts: Tensor  # [R] int32

    def to(self, device: torch.device) -> "Received":
        is_there = self.wire.device == device and self.counts.device == device
        return self if is_there else Received(*(t.to(device) for t in self))


@dataclass(frozen=True)
class Setup:
    """What a transport is built from; all but rank is the same on every rank."""

    rank: int
    num_ranks: int
    max_tokens: int  # rows that one rank sends another in an epoch, at most
    row_bytes: int  # of a wire row, at most
    deadline: float  # seconds that one wait may take
    key: str  # unique among all buffers that are open on these hosts
    device: torch.device  # of the tensors that are exchanged
    members: tuple[Member, ...]
    store: "dist.Store"  # the buffer's own part of it
    group: "dist.ProcessGroup | None"  # the user's, of ranks that are processes
    local: LocalGroup | None  # of ranks that are threads
    ranks: tuple[int, ...]  # what they are called in the buffer, of which these may be a part


def expect_room(setup: Setup, num_rows: int, row_bytes: int) -> None:
    """Raise ValueError where what one rank sends another is more than the memory for it."""
    most, largest = setup.max_tokens, setup.row_bytes
    if num_rows > most or row_bytes > largest:
        raise ValueError(
            f"ep: expected at most {most} rows of {largest} bytes to a rank, got {num_rows} of {row_bytes}"
        )


class Transport(ABC):
    """What connects the ranks: HostTransport, or DeviceTransport."""

    name: str
    rank: int
    num_ranks: int

    @abstractmethod
    def __init__(self, setup: Setup) -> None:
        """Called by every rank; may raise, and then every rank goes without this transport."""

    @classmethod
    def on(cls, device: torch.device) -> "type[Transport]":
        """What moves tensors of this device, under the same name."""
        return cls

    @staticmethod
    @abstractmethod
    def why_not() -> str | None:
        """Why this process cannot use it; None: it can."""

    @staticmethod
    @abstractmethod
    def unfit(members: list[Member], is_local: bool) -> str | None:
        """Why it does not connect these ranks (is_local: threads of one process); None: it does."""

    @abstractmethod
    def close(self) -> None:
        """Give back what it owns. May be called twice."""


class HostTransport(Transport):
    """Moves wire rows and knows nothing of experts.

    Epochs count from 1 without gaps; each rank calls, for each epoch, send (or abort), receive and release in
    this order. A second epoch may be sent before the first is received, a third may not. Waits end at the
    deadline that the transport was built with. After EpTimeout or EpPeerLost only abort and close are called;
    after a ValueError the epoch is over on every rank, release included, and the next one may follow. A peer
    that waits for a rank that has closed its transport gets EpPeerLost.
    """

    @abstractmethod
    def send(
        self,
        epoch: int,
        text: str,
        columns: list[Tensor],
        send_rows: Tensor,
        counts: Tensor,
        own_column: int = 0,
    ) -> None:
        """Begin the epoch: a header with `text` to every rank, this one too, then its rows.

        columns: [*, w] uint8 each, rows may be strided. send_rows: [m] int32, the row of the columns in each
        place of the send order, by destination, to none of them twice; what is past sum(counts) is not read.
        counts: [R] int32. own_column: of the rows to this rank itself no column before it will be read.
        The inputs may change after the call. Raises EpTimeout or EpPeerLost of a rank that has not released
        epoch - 2.
        """

    @abstractmethod
    def receive(self, epoch: int) -> Received:
        """End the epoch: wait for the rows of every rank.

        Raises EpTimeout, EpPeerLost, or the ValueError of expect_agreement on the headers.
        """

    @abstractmethod
    def release(self, epoch: int) -> None:
        """What receive(epoch) returned is not used any more; peers are told, no waiting."""

    @abstractmethod
    def abort(self, epoch: int, reason: str) -> None:
        """In place of send(epoch), without waiting: every receive(epoch) raises ValueError with the
        reason as its words, this rank's too."""


class DeviceTransport(Transport):
    """Memory of every rank that the kernels of all ranks reach: what is written there is theirs to know.

    It is there, and zero, when every rank has built its own; after close a rank's kernels touch none of it,
    and it stays as long as a peer's may.
    """

    bases: Tensor  # [R] int64 on the device: where this rank's kernels find the memory of each rank
    kernels: Kernels


def not_on_one_host(members: list[Member]) -> str | None:
    """Which rank is elsewhere, where one is."""
    other = next((r for r, member in enumerate(members) if member.host != members[0].host), None)
    return other and f"rank {other} is not on the host of rank 0, or in another container"


def not_in_host_memory(members: list[Member]) -> str | None:
    device = members[0].device
    return None if device == "cpu" else f"only rows of CPU tensors can travel, and these are on {device}"


def memory_of(setup: Setup) -> Memory:
    """The form of the memory that a DeviceTransport gives."""
    return Memory(setup.num_ranks, setup.max_tokens, setup.row_bytes)
