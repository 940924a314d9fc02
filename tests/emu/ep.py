"""What the tests of the CUDA kernels of expert parallelism share: routing, and what ranks are given."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import gemm
import torch
from moela import reference
from moela.ep.placement import expert_range
from moela.ep.wire import WireFormat
from torch import Tensor

# The bits of a status word (csrc/cuda/block/ep_memory.h).
NOT_RELEASED, NOT_ARRIVED, ABORTED, DISAGREEMENT, CAPACITY = range(1, 6)


LAYOUTS = ("compact", "expert", "masked")


class Status(NamedTuple):
    error: int
    peer: int
    epoch: int


def status_of(folder: Path, rank: int) -> Status:
    word = gemm.read(folder / f"{rank}.status", torch.int64, 1).item()
    return Status(word & 0xFF, word >> 8 & 0xFFFFFF, word >> 32)


def routing(T: int, topk: int, num_experts: int, seed: int) -> tuple[Tensor, Tensor]:
    """ids [T, topk] int32 with dropped ones among them, weights [T, topk]."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(num_experts, generator=g)[:topk] for _ in range(T)] or [torch.empty(0)])
    ids = ids.view(T, topk).int()
    ids[torch.rand(T, topk, generator=g) < 0.2] = -1
    return ids, torch.rand(T, topk, generator=g)


@dataclass
class Case:
    """A buffer, and what its ranks send in every epoch."""

    T: list[list[int]]  # [epochs][ranks]
    topk: int = 3
    num_experts: int = 7
    widths: tuple[int, ...] = (64,)  # bytes of x and of the extras
    padding: int = 16  # bytes between rows of x
    streams: list[str] | None = None  # what each rank does; None: "sr" for every epoch
    layout: str = "compact"
    capacity: int | None = None
    num_blocks: int = 2
    deadline: int = 20_000
    ids: list = field(init=False)  # [epochs][ranks], and so on
    weights: list = field(init=False)
    columns: list = field(init=False)

    def __post_init__(self):
        seed = iter(range(10_000))
        routed = [
            [routing(T, self.topk, self.num_experts, next(seed)) for T in of_epoch] for of_epoch in self.T
        ]
        self.ids, self.weights = ([[r[i] for r in of_epoch] for of_epoch in routed] for i in (0, 1))
        g = torch.Generator().manual_seed(1)
        self.columns = [
            [
                [torch.randint(256, (T, w), dtype=torch.uint8, generator=g) for w in self.widths]
                for T in of_epoch
            ]
            for of_epoch in self.T
        ]
        self.streams = self.streams or ["sr" * len(self.T)] * self.R

    @property
    def R(self) -> int:
        return len(self.T[0])

    @property
    def max_tokens(self) -> int:
        return max(1, *(max(of_epoch) for of_epoch in self.T))

    @property
    def most(self) -> int:
        """The capacity that all that can come has room in."""
        return self.R * self.max_tokens * (self.topk if self.layout == "expert" else 1)

    @property
    def room(self) -> int:
        return self.most if self.capacity is None else self.capacity

    @property
    def wire(self) -> WireFormat:
        return WireFormat((*self.widths, 4 * self.topk, 4 * self.topk))

    @property
    def first_experts(self) -> list[int]:
        return [expert_range(self.num_experts, self.R, r).start for r in range(self.R)] + [self.num_experts]

    def write(self, folder: Path) -> None:
        """The files that tests/emu/ep_dispatch.cpp reads."""
        strides = [w + (self.padding if i == 0 else 0) for i, w in enumerate(self.wire.widths)]
        columns = zip(self.wire.widths, strides, self.wire.offsets, strict=True)
        words = (
            (self.R, self.topk, self.max_tokens, self.room, self.num_blocks),
            (LAYOUTS.index(self.layout), self.deadline),
            (self.wire.row_bytes, len(strides), *(word for column in columns for word in column)),
            self.first_experts,
            (stream or "-" for stream in self.streams),
        )
        (folder / "case").write_text("\n".join(" ".join(map(str, line)) for line in words))
        for e, of_epoch in enumerate(self.columns, 1):
            for r, columns in enumerate(of_epoch):
                ids, weights = self.ids[e - 1][r], self.weights[e - 1][r]
                _, counts, slots = reference.ep_plan(ids, self.num_experts, self.R)
                gemm.write(folder / f"{r}.{e}.slots", slots)
                gemm.write(folder / f"{r}.{e}.counts", counts)
                sent_ids = torch.where(slots >= 0, ids, -1).int()
                rows = [*columns, sent_ids.view(torch.uint8), weights.view(torch.uint8)]
                for i, column in enumerate(rows):
                    padded = torch.full((column.size(0), strides[i]), 0xFF, dtype=torch.uint8)
                    padded[:, : column.size(1)] = column
                    gemm.write(folder / f"{r}.{e}.in{i}", padded)

    def received(self, epoch: int, column: int) -> list:
        """Of the definition: by rank, with this column as x."""
        return reference.ep_dispatch(
            [columns[column] for columns in self.columns[epoch - 1]],
            self.ids[epoch - 1],
            self.weights[epoch - 1],
            self.num_experts,
            self.layout,
            [self.most] * self.R,
        )
