"""What dispatch and combine do between the caller's tensors and a transport's wire rows.

A *row* is a token on its way to a rank. Sent rows are in send order: by destination, then token. Received
rows are in received order: by source, then token. Both are pure functions of topk_ids.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from moela.ep import layout as layouts
from moela.ep.buffer import EpBuffer
from moela.ep.rows import gather_rows, received_rows, returned_rows
from moela.ep.wire import WireFormat, as_bytes, wire_format
from moela.ops import _check

EXACT = -1  # a capacity: that of what came
MIN_OWN_BYTES = 1 << 16  # of x: below, to send this rank its rows takes less than to do without


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
    buffer: EpBuffer,
    x: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    extras: Sequence[Tensor],
    stays: bool = False,
) -> tuple[int, Tensor, Tensor]:
    """-> (epoch, slots, send_counts).

    stays: receive_tokens will be given x and extras again: what this rank sends itself is taken from there.
    """
    send_rows, counts, slots = torch.ops.moela.ep_plan.default(topk_ids, buffer.num_experts, buffer.num_ranks)
    # What int32 cannot hold is dropped anyway. Other ids that no rank has do no harm.
    ids = topk_ids if topk_ids.dtype == torch.int32 else torch.where(slots >= 0, topk_ids, -1).int()
    text = _text("ep_dispatch", x, *extras)  # whatever its form is on this rank
    stays = stays and x.nbytes >= MIN_OWN_BYTES
    columns, own_column = _bytes_of(x, *extras, ids, topk_weights), 1 + len(extras) if stays else 0
    epoch = buffer.send(text, columns, send_rows, counts, own_column)
    if stays:
        sent = counts.tolist()
        first = sum(sent[: buffer.rank])
        buffer.own_rows[epoch] = send_rows[first : first + sent[buffer.rank]]
    return epoch, slots, counts


def receive_tokens(
    buffer: EpBuffer,
    op: str,
    epoch: int,
    like: Sequence[Tensor],
    layout: str,
    capacity: int | None,
    into: Sequence[Tensor] | None = None,
) -> Placed:
    """like: x and the extras, of any number of rows. EXACT: no row to spare.

    into: what x and the extras are written to, in place of new tensors.
    """
    device = like[0].device
    form = _token_form(*like, topk=buffer.topk)
    if capacity is None:
        capacity = layouts.shapes(buffer, layout, None).rows[-1]
    own_rows = buffer.own_rows.pop(epoch, None)
    with buffer.receive(epoch) as received:
        received = received.to(device)
        placed = layouts.place(buffer, received, form, like, layout, capacity, into, own_rows)
        if capacity != EXACT and placed.needed > capacity:
            message = f"{op}: capacity: expected at least {placed.needed} for what came, got {capacity}"
            buffer.give_up(message)
            raise ValueError(message)
    (x, *extras), ids, weights, experts, counts, positions, _ = placed
    return Placed(x, ids, weights, extras, experts, counts, positions)


def send_back(
    buffer: EpBuffer, op: str, columns: Sequence[Tensor], rows: Tensor | None, recv_counts: Tensor
) -> int:
    """A row per received row to where it came from -> the epoch.

    columns: [*, w]. rows: [N] int32, in received order, those of the columns; None: the columns are in it.
    """
    if rows is None:
        rows = torch.arange(columns[0].size(0), dtype=torch.int32, device=columns[0].device)
    return buffer.send(_text(op, *columns), _bytes_of(*columns), rows, recv_counts)


def receive_back(
    buffer: EpBuffer, op: str, epoch: int, like: Sequence[Tensor], slots: Tensor, into: Tensor | None = None
) -> list[Tensor]:
    """Sum what a token's rows came back as, float32, in the order of the ranks, rounded once. -> [T, *].

    into: what the only column is written to.
    """
    form = _form(*like)
    with buffer.receive(epoch) as received:
        received = received.to(slots.device)
        rows = returned_rows(slots, *received)  # [T, topk]
        columns = [form.column(received.wire, i).view(t.dtype) for i, t in enumerate(like)]
        if into is None:
            return [torch.ops.moela.moe_unpermute.default(column, None, rows) for column in columns]
        torch.ops.moela.moe_unpermute_out.default(columns[0], None, rows, out=into)
        return [into]


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
        wire, *where = received.to(like.device)
        rows = received_rows(*where)
        out = wire.new_empty((rows.numel(), form.widths[0]))
        gather_rows(form.column(wire, 0), rows, out)
        return out.view(like.dtype)


def _text(op: str, *columns: Tensor) -> str:
    """What the ranks have to agree on."""
    return _text_of(op, *[(c.dtype, c.size(1)) for c in columns])


@lru_cache(maxsize=256)
def _text_of(op: str, *columns: tuple[torch.dtype, int]) -> str:
    return " ".join([op, *(f"{_check.dtype_name(dtype)}[{width}]" for dtype, width in columns)])


def _bytes_of(*columns: Tensor) -> list[Tensor]:
    return [as_bytes(column) for column in columns]


def _form(*columns: Tensor) -> WireFormat:
    return wire_format(tuple([c.size(1) * c.element_size() for c in columns]))


def _token_form(x: Tensor, *extras: Tensor, topk: int) -> WireFormat:
    """Of the row that brings a token: with its ids and weights."""
    return wire_format((*_form(x, *extras).widths, 4 * topk, 4 * topk))


def row_bytes(x: Tensor, *extras: Tensor, topk: int) -> int:
    return _token_form(x, *extras, topk=topk).row_bytes
