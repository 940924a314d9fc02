"""What dispatch and combine do between the caller's tensors and a transport's wire rows.

A *row* is a token on its way to a rank. Sent rows are in send order: by destination, then token. Received
rows are in received order: by source, then token. Both are pure functions of topk_ids.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from moela.ep import layout as layouts
from moela.ep.buffer import EpBuffer
from moela.ep.transports import Received
from moela.ep.wire import WireFormat, as_bytes
from moela.ops import _check

EXACT = -1  # a capacity: that of what came


class EpHandle(NamedTuple):
    """Where the rows of a dispatch went: for `ep_combine`, and for derivatives."""

    slots: Tensor  # [T, topk] int32: the sent row of each (token, k), -1 where dropped
    send_counts: Tensor  # [R] int32: rows sent to each rank
    recv_counts: Tensor  # [R] int32: rows received from each rank
    # [R * max_tokens, topk] int32: the place of each (received row, k) in the layout, all dimensions of rows
    # counted as one, -1 where there is none. Compact has one place per row: [R * max_tokens, 1].
    positions: Tensor


class Placed(NamedTuple):
    """Received rows in their layout, and the part of the handle that only the receiver knows."""

    x: Tensor
    topk_ids: Tensor
    topk_weights: Tensor
    extras: list[Tensor]
    experts: Tensor
    recv_counts: Tensor
    positions: Tensor


def send_tokens(
    buffer: EpBuffer, x: Tensor, topk_ids: Tensor, topk_weights: Tensor, extras: Sequence[Tensor]
) -> tuple[int, Tensor, Tensor]:
    """-> (epoch, slots, send_counts)."""
    send_rows, counts, slots = torch.ops.moela.ep_plan(topk_ids, buffer.num_experts, buffer.num_ranks)
    ids = torch.where(slots >= 0, topk_ids, -1).int()  # what int32 cannot hold is dropped anyway
    text = _text("ep_dispatch", x, *extras)  # whatever its form is on this rank
    return buffer.send(text, _bytes_of(x, *extras, ids, topk_weights), send_rows, counts), slots, counts


def receive_tokens(
    buffer: EpBuffer, op: str, epoch: int, like: Sequence[Tensor], layout: str, capacity: int | None
) -> Placed:
    """like: x and the extras, of any number of rows. EXACT: no row to spare."""
    topk, E, device = buffer.topk, buffer.num_local_experts, like[0].device
    form = _form(*like, *[torch.empty((0, topk), dtype=torch.int32)] * 2)
    with buffer.receive(epoch) as received:
        wire = _in_one_piece(received).to(device)  # [N, row_bytes]
        ids = _column(form, wire, len(like), torch.int32) - buffer.first_expert  # [N, topk]
        is_here = (ids >= 0) & (ids < E)
        ids = torch.where(is_here, ids, -1)
        weights = torch.where(is_here, _column(form, wire, len(like) + 1, torch.float32), 0)  # [N, topk]
        room = layouts.shapes(buffer, layout, None if capacity == EXACT else capacity).rows[-1]
        places = layouts.places(layout, ids, E, room)
        if places.needed > room:
            message = f"{op}: capacity: expected at least {places.needed} for what came, got {room}"
            buffer.give_up(message)
            raise ValueError(message)
        shapes = layouts.shapes(buffer, layout, places.needed if capacity == EXACT else room)
        outs = [wire.new_zeros((*shapes.rows, width)) for width in form.widths[:-2]]  # [*, bytes]
        for i, out in enumerate(outs):
            places.fill(out.flatten(0, -2), form.column(wire, i))
    N = ids.size(0)
    out_ids = ids.new_full(shapes.ids, -1)
    out_weights = weights.new_zeros(shapes.weights)
    if layout == "compact":
        out_ids[:N], out_weights[:N] = ids, weights
    else:
        out_weights.view(-1)[places.positions[is_here]] = weights[is_here]
    positions = ids.new_full(shapes.positions, -1)
    positions[:N] = places.positions
    x, *extras = (out.view(t.dtype) for out, t in zip(outs, like, strict=True))
    counts = received.counts.to(device)
    return Placed(x, out_ids, out_weights, extras, places.experts, counts, positions)


def send_back(buffer: EpBuffer, op: str, columns: Sequence[Tensor], recv_counts: Tensor) -> int:
    """A row per received row to where it came from -> the epoch. columns: [N, *], in received order."""
    rows = torch.arange(columns[0].size(0), dtype=torch.int32, device=columns[0].device)
    return buffer.send(_text(op, *columns), _bytes_of(*columns), rows, recv_counts)


def receive_back(
    buffer: EpBuffer, op: str, epoch: int, like: Sequence[Tensor], slots: Tensor
) -> list[Tensor]:
    """Sum what a token's rows came back as, float32, in the order of the ranks, rounded once. -> [T, *]."""
    form = _form(*like)
    with buffer.receive(epoch) as received:
        wire = _in_one_piece(received).to(slots.device)
        columns = [_column(form, wire, i, t.dtype) for i, t in enumerate(like)]
    rows = slots.sort(dim=1).values  # [T, topk]: by rank, as send order is; those of one rank are equal
    is_again = torch.nn.functional.pad(rows[:, 1:] == rows[:, :-1], (1, 0))
    rows = rows.masked_fill_(is_again, -1)
    return [torch.ops.moela.moe_unpermute(column, None, rows) for column in columns]


def send_again(buffer: EpBuffer, op: str, x: Tensor, slots: Tensor, counts: Tensor) -> int:
    """Rows of [T, *] to where a dispatch sent them -> the epoch."""
    T, topk = slots.shape
    send_rows = slots.new_full((T * topk + 1,), -1)  # the last one for what is dropped
    tokens = torch.arange(T, dtype=torch.int32, device=slots.device).view(T, 1).expand(T, topk)
    send_rows[slots.long()] = tokens
    return buffer.send(_text(op, x), _bytes_of(x), send_rows[:-1], counts)


def receive_again(buffer: EpBuffer, epoch: int, like: Tensor) -> Tensor:
    """-> [N, *], in received order."""
    form = _form(like)
    with buffer.receive(epoch) as received:
        return _column(form, _in_one_piece(received).to(like.device), 0, like.dtype)


def _text(op: str, *columns: Tensor) -> str:
    """What the ranks have to agree on."""
    return " ".join([op, *(f"{_check.dtype_name(c.dtype)}[{c.size(1)}]" for c in columns)])


def _bytes_of(*columns: Tensor) -> list[Tensor]:
    return [as_bytes(column) for column in columns]


def _form(*columns: Tensor) -> WireFormat:
    return WireFormat(tuple(c.size(1) * c.element_size() for c in columns))


def _column(form: WireFormat, wire: Tensor, i: int, dtype: torch.dtype) -> Tensor:
    """A copy, so that it outlives the transport's memory and is aligned."""
    out = wire.new_empty((wire.size(0), form.widths[i] // dtype.itemsize), dtype=dtype)
    as_bytes(out).copy_(form.column(wire, i))
    return out


def _in_one_piece(received: Received) -> Tensor:
    """[N, row_bytes]: the rows of all sources, one after another; a view where they lie so."""
    starts, counts = received.starts.tolist(), received.counts.tolist()
    ends = [start + count for start, count in zip(starts, counts, strict=True)]
    if all(end == start for end, start in zip(ends, starts[1:], strict=False)):
        return received.wire[starts[0] : ends[-1]]
    return torch.cat([received.wire[start:end] for start, end in zip(starts, ends, strict=True)])


def row_bytes(x: Tensor, *extras: Tensor, topk: int) -> int:
    """Of the row that brings a token: with its ids and weights."""
    return WireFormat((*_form(x, *extras).widths, 4 * topk, 4 * topk)).row_bytes
