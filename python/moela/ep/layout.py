"""Where received rows go: the three layouts, from one order.

compact: a row per received row. expert: a row per (received row, local expert), sorted by expert, then in
received order, then by k. masked: the same, with a place for `capacity` rows per expert.
"""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from moela.ep.buffer import EpBuffer

LAYOUTS = ("compact", "expert", "masked")


class Shapes(NamedTuple):
    """Of the tensors that a dispatch returns."""

    rows: tuple[int, ...]  # of x and the extras, all dimensions but the last
    ids: tuple[int, int]
    weights: tuple[int, ...]
    experts: tuple[int]  # expert_offsets or expert_counts
    positions: tuple[int, int]


def shapes(buffer: EpBuffer, layout: str, capacity: int | None) -> Shapes:
    """capacity None: room for all rows that can come."""
    E, topk, most = buffer.num_local_experts, buffer.topk, buffer.num_ranks * buffer.max_tokens
    if layout == "compact":
        rows = most if capacity is None else capacity
        return Shapes((rows,), (rows, topk), (rows, topk), (0,), (most, 1))
    if layout == "expert":
        rows = most * min(topk, E) if capacity is None else capacity
        return Shapes((rows,), (0, topk), (rows,), (E + 1,), (most, topk))
    rows = most if capacity is None else capacity
    return Shapes((E, rows), (0, topk), (E, rows), (E,), (most, topk))


class Places(NamedTuple):
    """The places of N received rows in a layout, all dimensions of rows counted as one."""

    needed: int  # the capacity that holds them
    experts: Tensor  # expert_offsets, expert_counts, or nothing
    order: Tensor  # [M] int32: the received row of what is placed, segment after segment
    segments: list[tuple[int, int, int]]  # (first place, its index in order, how many)
    positions: Tensor  # [N, topk] int32, compact [N, 1]: the place of each (row, k), -1: none

    def fill(self, out: Tensor, rows: Tensor) -> None:
        """[N, w] -> the rows of out [*, w] that are places."""
        for place, begin, n in self.segments:
            torch.index_select(rows, 0, self.order[begin : begin + n], out=out[place : place + n])


def places(layout: str, ids: Tensor, num_local_experts: int, capacity: int | None) -> Places:
    """ids: [N, topk] int32, of local experts, or -1. capacity: of the masked layout."""
    N = ids.size(0)
    rows = torch.arange(N, dtype=torch.int32, device=ids.device).view(N, 1)
    if layout == "compact":
        return Places(N, ids.new_empty(0), rows.flatten(), [(0, 0, N)], rows)
    order, offsets, positions = torch.ops.moela.moe_permute(rows, ids, max(num_local_experts, 1))
    offsets = offsets[: num_local_experts + 1]
    order, ends = order.flatten(), offsets.tolist()
    if layout == "expert":
        return Places(ends[-1], offsets, order, [(0, 0, ends[-1])], positions)
    counts = [end - begin for begin, end in itertools.pairwise(ends)]
    needed = max(counts, default=0)
    segments = [(e * capacity, ends[e], n) for e, n in enumerate(counts)]
    experts = ids.clamp(min=0)
    shifted = positions - offsets[experts] + experts * capacity if num_local_experts else positions
    return Places(needed, offsets.diff(), order, segments, torch.where(positions < 0, -1, shifted))


def fold(y: Tensor, positions: Tensor, weights: Tensor | None) -> Tensor:
    """The rows that go back: the sum of each row's places, times their weights. -> [N, H] of y's dtype.

    y: [*, H], rows of a layout. positions: [N, topk] int32. weights: float32, of y's rows. Sums are float32,
    in the order of k, rounded once.
    """
    weights = None if weights is None else at(weights, positions)
    return torch.ops.moela.moe_unpermute(y, weights, positions)


def at(values: Tensor, positions: Tensor) -> Tensor:
    """values[positions], 0 where there is no position: [*] and [N, topk] -> [N, topk]."""
    if values.numel() == 0:
        return values.new_zeros(positions.shape)
    return torch.where(positions >= 0, values.flatten()[positions.clamp(min=0)], 0)
