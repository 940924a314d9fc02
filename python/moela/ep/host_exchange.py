"""Exchanges of rows that a transport of the host moves, and their epochs."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moela.ep import layout as layouts
from moela.ep.errors import EpError
from moela.ep.exchange import (
    BROKEN,
    EXACT,
    MAX_IN_FLIGHT,
    Exchange,
    Placed,
    bytes_of,
    expect_next,
    expect_room,
    form_of,
    text_of,
    token_form,
)
from moela.ep.rows import gather_rows, num_places, received_rows, returned_rows
from moela.ep.transports import Received

if TYPE_CHECKING:
    from moela.ep.buffer import EpBuffer

MIN_OWN_BYTES = 1 << 16  # of x: below, to send this rank its rows takes less than to do without


class _Watched:
    """Keeps what breaks the buffer in a ``with``; a generator would take some microseconds."""

    fault: EpError | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, EpError):
            self.fault = error


class HostExchange(Exchange):
    """What goes wrong is raised where it does, on all ranks: a capacity exceeded on others in their next one.

    After EpTimeout or EpPeerLost the buffer is broken, after a ValueError it is not.
    """

    def __init__(self, buffer: "EpBuffer") -> None:
        self._buffer, self._transport = buffer, buffer.transport
        self.num_sent = self._num_received = 0  # the last epoch of each
        self._given_up: set[int] = set()  # epochs that this rank aborted and has not received
        self._own_rows: dict[int, Tensor] = {}  # by epoch: of x, what this rank takes from there
        self._watched = _Watched()

    def send_tokens(self, x, topk_ids, topk_weights, extras, stays=False):
        rank, R, E = self._buffer.rank, self._buffer.num_ranks, self._buffer.num_experts
        send_rows, counts, slots = torch.ops.moela.ep_plan.default(topk_ids, E, R)
        # What int32 cannot hold is dropped anyway. Other ids that no rank has do no harm.
        ids = topk_ids if topk_ids.dtype == torch.int32 else torch.where(slots >= 0, topk_ids, -1).int()
        text = text_of("ep_dispatch", x, *extras)  # whatever its form is on this rank
        stays = stays and x.is_cpu and x.nbytes >= MIN_OWN_BYTES
        own_column = 1 + len(extras) if stays else 0
        epoch = self.send(text, bytes_of(x, *extras, ids, topk_weights), send_rows, counts, own_column)
        if stays:
            sent = counts.tolist()
            first = sum(sent[:rank])
            self._own_rows[epoch] = send_rows[first : first + sent[rank]]
        return epoch, slots, counts

    def receive_tokens(self, op, epoch, like, layout, capacity, into=None):
        buffer, device = self._buffer, like[0].device
        form = token_form(*like, topk=buffer.topk)
        if capacity is None:
            capacity = layouts.shapes(buffer, layout, None).rows[-1]
        own_rows = self._own_rows.pop(epoch, None)
        with self.receive(epoch) as received:
            received = received.to(device)
            placed = layouts.place(buffer, received, form, like, layout, capacity, into, own_rows)
            if capacity != EXACT and placed.needed > capacity:
                message = f"{op}: capacity: expected at least {placed.needed} for what came, got {capacity}"
                self.give_up(message)
                raise ValueError(message)
        (x, *extras), ids, weights, experts, counts, positions, _ = placed
        return Placed(x, ids, weights, extras, experts, counts, positions)

    def send_back(self, op, y, topk_weights, handle):
        _, _, recv_counts, positions = handle
        N = self._expect_places(op, y, recv_counts, positions)
        if positions.size(1) == 1 and topk_weights is None:  # one place per row: the row itself goes back
            return self.send(text_of(op, y), bytes_of(y), positions[:, 0], recv_counts)
        return self._send_in_order(op, [layouts.fold(y, positions[:N], topk_weights)], recv_counts)

    def _expect_places(self, op: str, y: Tensor, recv_counts: Tensor, positions: Tensor) -> int:
        """That y has the rows that the dispatch filled; the peers are told if it has not. -> N."""
        N, needed = num_places(recv_counts, positions)
        if needed > y.size(0):
            got = f"{y.size(0)} rows, where row {needed - 1} is wanted"
            message = f"{op}: y: expected the rows of the dispatch of this handle, got {got}"
            self.give_up(message)
            raise ValueError(message)
        return N

    def receive_back(self, op, epoch, like, slots, send_counts, into=None):
        [out] = self._receive_sums(op, epoch, [like], slots, send_counts, into)
        return out

    def sums_back(self, op, parts, handle):
        slots, send_counts, recv_counts, _ = handle
        N = int(recv_counts.sum())
        rows = [layouts.fold(y, positions[:N], None) for y, positions in parts]
        return self._receive_sums(op, self._send_in_order(op, rows, recv_counts), rows, slots, send_counts)

    def _send_in_order(self, op: str, columns: list[Tensor], recv_counts: Tensor) -> int:
        """A row per received row, in received order."""
        rows = torch.arange(columns[0].size(0), dtype=torch.int32, device=columns[0].device)
        return self.send(text_of(op, *columns), bytes_of(*columns), rows, recv_counts)

    def _receive_sums(self, op, epoch, like, slots, send_counts, into=None) -> list[Tensor]:
        form = form_of(*like)
        with self.receive(epoch) as received:
            sent, came = send_counts.tolist(), received.counts.tolist()
            if came != sent:
                wanted = f"expected {sent} rows from the ranks, as many as the dispatch sent them, got {came}"
                message = f"{op}: handle: {wanted}; do all ranks take that of the same dispatch?"
                self.give_up(message)
                raise ValueError(message)
            received = received.to(slots.device)
            rows = returned_rows(slots, *received)  # [T, topk]
            columns = [form.column(received.wire, i).view(t.dtype) for i, t in enumerate(like)]
            if into is None:
                return [torch.ops.moela.moe_unpermute.default(column, None, rows) for column in columns]
            torch.ops.moela.moe_unpermute_out.default(columns[0], None, rows, out=into)
            return [into]

    def again(self, op, x, handle):
        slots, send_counts, _, _ = handle
        T, topk = slots.shape
        send_rows = slots.new_full((T * topk + 1,), -1)  # the last one for what is dropped
        tokens = torch.arange(T, dtype=torch.int32, device=slots.device).view(T, 1).expand(T, topk)
        send_rows[slots.long()] = tokens
        form = form_of(x)
        with self.receive(self.send(text_of(op, x), bytes_of(x), send_rows[:-1], send_counts)) as received:
            wire, *where = received.to(x.device)
            rows = received_rows(*where)
            out = wire.new_empty((rows.numel(), form.widths[0]))
            gather_rows(form.column(wire, 0), rows, out)
            return out.view(x.dtype)

    # --- one exchange is one epoch ------------------------------------------------------------------------

    def send(
        self, text: str, columns: list[Tensor], send_rows: Tensor, counts: Tensor, own_column: int = 0
    ) -> int:
        """Begin an exchange and return its epoch. See HostTransport.send."""
        self._make_room()
        with self._watched:
            self._transport.send(self.num_sent + 1, text, columns, send_rows, counts, own_column)
        self.num_sent += 1
        return self.num_sent

    def give_up(self, reason: str) -> None:
        """Tell the peers that this rank cannot take part in the next exchange: they raise ValueError."""
        self._make_room()
        rank, epoch = self._buffer.rank, self.num_sent + 1
        with self._watched:
            self._transport.abort(epoch, f"ep: rank {rank} gave up in epoch {epoch}: {reason}")
        self.num_sent = epoch
        self._given_up.add(epoch)

    @contextlib.contextmanager
    def receive(self, epoch: int) -> Iterator[Received]:
        """End the exchange. What it gives is valid in the ``with`` only."""
        self._drain(epoch)
        expect_next(epoch, self._num_received + 1)
        with self._watched:
            self._num_received = epoch
            received = self._transport.receive(epoch)
        try:
            yield received
        finally:
            self._transport.release(epoch)

    def _make_room(self) -> None:
        self._raise_fault()
        in_flight = self.num_sent - self._num_received
        if in_flight == MAX_IN_FLIGHT and self._num_received + 1 in self._given_up:
            self._drain(self._num_received + 2)
        expect_room(self.num_sent - self._num_received)

    def _drain(self, end: int) -> None:
        """Go through the epochs before `end` that this rank gave up, to stay in step with its peers."""
        self._raise_fault()
        while self._num_received + 1 < end and self._num_received + 1 in self._given_up:
            self._num_received += 1
            self._given_up.remove(self._num_received)
            with self._watched, contextlib.suppress(ValueError):  # its own reason, which it has raised
                self._transport.receive(self._num_received)

    def _raise_fault(self) -> None:
        if e := self._watched.fault:
            raise type(e)(e.ranks, e.epoch, f"{e.detail}; {BROKEN}")

    def check(self) -> None:
        """Everything was raised at once."""

    def close(self) -> None:
        """Nothing to do: the transport tells."""
