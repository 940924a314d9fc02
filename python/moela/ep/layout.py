"""Where received rows go: the three layouts, from one order.

compact: a row per received row. expert: a row per (received row, local expert), sorted by expert, then in
received order, then by k. masked: the same, with a place for `capacity` rows per expert.
"""

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from moela.ep.rows import is_compiled, received_rows
from moela.ep.transports import Received

if TYPE_CHECKING:
    from moela.ep.buffer import EpBuffer

LAYOUTS = ("compact", "expert", "masked")


class Shapes(NamedTuple):
    """Of the tensors that a dispatch returns."""

    rows: tuple[int, ...]  # of x and the extras, all dimensions but the last
    ids: tuple[int, int]
    weights: tuple[int, ...]
    experts: tuple[int]  # expert_offsets or expert_counts
    positions: tuple[int, int]


def shapes(buffer: "EpBuffer", layout: str, capacity: int | None) -> Shapes:
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


class Placement(NamedTuple):
    """Where N received rows go in a layout, all dimensions of its rows counted as one: places."""

    source: Tensor  # [places] int32: the row of wire, -1: none, zeros
    ids: Tensor  # of Shapes.ids: numbers of experts of this rank, -1: not here
    weights: Tensor  # of Shapes.weights: 0 where there is no expert
    experts: Tensor  # expert_offsets, expert_counts, or nothing
    positions: Tensor  # of Shapes.positions: the place of each (received row, k), -1: none
    needed: int  # the capacity that holds what came; if it is more than there is, the others are not used


def place(
    buffer: "EpBuffer", received: Received, ids_at: int, weights_at: int, layout: str, capacity: int
) -> Placement:
    """ids_at, weights_at: where in a wire row they are, in bytes. capacity -1: as much as is needed."""
    topk, E, most = buffer.topk, buffer.num_local_experts, buffer.num_ranks * buffer.max_tokens
    wire, starts, counts = received
    if is_compiled(wire):
        return Placement(
            *torch.ops.moela_ep.place(
                wire, starts, counts, ids_at, weights_at, topk, buffer.first_expert, E,
                LAYOUTS.index(layout), capacity, most,
            )
        )  # fmt: skip
    rows = received_rows(starts, counts)  # [N]
    ids = wire[rows, ids_at : ids_at + 4 * topk].view(torch.int32) - buffer.first_expert  # [N, topk]
    is_here = (ids >= 0) & (ids < E)
    ids = torch.where(is_here, ids, -1)
    weights = wire[rows, weights_at : weights_at + 4 * topk].view(torch.float32)  # [N, topk]
    weights = torch.where(is_here, weights, 0)
    of_rows, experts, needed = _positions(layout, ids, E, capacity)  # [N, topk], compact [N, 1]
    room = needed if capacity < 0 else capacity
    of = shapes(buffer, layout, room)
    out_ids, out_weights = ids.new_full(of.ids, -1), weights.new_zeros(of.weights)
    positions = ids.new_full(of.positions, -1)
    source = ids.new_full((math.prod(of.rows),), -1)
    if needed <= room:
        positions[: ids.size(0)] = of_rows
        is_place = of_rows >= 0
        source[of_rows[is_place]] = rows.view(-1, 1).expand(of_rows.shape)[is_place]
        if layout == "compact":
            out_ids[: ids.size(0)], out_weights[: ids.size(0)] = ids, weights
        else:
            out_weights.view(-1)[of_rows[is_place]] = weights[is_place]
    return Placement(source, out_ids, out_weights, experts, positions, needed)


def _positions(layout: str, ids: Tensor, E: int, capacity: int) -> tuple[Tensor, Tensor, int]:
    """-> (the places of [N, topk] local ids, expert_offsets or expert_counts, the capacity needed)."""
    N = ids.size(0)
    rows = torch.arange(N, dtype=torch.int32, device=ids.device).view(N, 1)
    if layout == "compact":
        return rows, ids.new_empty(0), N
    _, offsets, positions = torch.ops.moela.moe_permute(rows, ids, max(E, 1))
    offsets = offsets[: E + 1]
    if layout == "expert":
        return positions, offsets, int(offsets[-1])
    counts = offsets.diff()
    needed = int(counts.max()) if E else 0
    experts = ids.clamp(min=0)
    room = needed if capacity < 0 else capacity
    shifted = positions - offsets[experts] + experts * room if E else positions
    return torch.where(positions < 0, -1, shifted), counts, needed


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
