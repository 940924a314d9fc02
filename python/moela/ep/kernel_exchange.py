"""Exchanges that kernels do on their own, in memory that the kernels of all ranks reach.

Nothing here waits for the device, but `check`, `close` and exact sizes: a call launches kernels and returns,
and may be captured in a CUDA graph. What goes wrong is therefore known late, and breaks the buffer
(docs/adr/0015).
"""

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moela.ep import layout as layouts
from moela.ep.device import MAX_COLUMNS, DeviceExchange, Fault, Status
from moela.ep.errors import EpError, EpPeerLost, EpTimeout
from moela.ep.exchange import (
    BROKEN,
    EXACT,
    Exchange,
    Placed,
    bytes_of,
    expect_next,
    expect_room,
    form_of,
    text_of,
)
from moela.ep.wire import ALIGNMENT

if TYPE_CHECKING:
    from moela.ep.buffer import EpBuffer


class KernelExchange(Exchange):
    """A failure is raised by the next op of the buffer that finds its status, or by check."""

    def __init__(self, buffer: "EpBuffer") -> None:
        self._buffer, self._kernels, device = buffer, buffer.transport.kernels, buffer.device
        self.num_sent = self._num_received = 0  # of calls; what a graph repeats is counted on the device only
        self._epochs = torch.zeros(2, dtype=torch.int64, device=device)
        self._done = torch.zeros(2, dtype=torch.int32, device=device)
        # Where the host reads it without waiting.
        self._status = torch.zeros(1, dtype=torch.int64, pin_memory=device.type == "cuda")
        most = buffer.num_ranks * buffer.max_tokens
        self._rows = torch.arange(most, dtype=torch.int32, device=device)  # numbers of all that can come
        self._fault: EpError | ValueError | None = None
        self._is_closed = False
        self._synchronize()  # ops may come on other streams

    # --- dispatch -----------------------------------------------------------------------------------------

    def send_tokens(self, x, topk_ids, topk_weights, extras):
        R, E = self._buffer.num_ranks, self._buffer.num_experts
        self._expect_columns(len(extras) + 3)
        _, counts, slots = torch.ops.moela.ep_plan(topk_ids, E, R)
        ids = torch.where(slots >= 0, topk_ids, -1).int()  # what int32 cannot hold is dropped anyway
        text = text_of("ep_dispatch", x, *extras)  # whatever its form is on this rank
        return self._send(text, (x, *extras, ids, topk_weights), slots, counts), slots, counts

    def _expect_columns(self, num_columns: int) -> None:
        if num_columns > MAX_COLUMNS:
            most, got = MAX_COLUMNS - 3, num_columns - 3
            message = f"ep_dispatch: extras: expected at most {most} on {self._buffer.device}, got {got}"
            self.give_up(message)
            raise ValueError(message)

    def _send(self, text: str, columns, slots: Tensor, counts: Tensor) -> int:
        form = form_of(*columns)
        x = self._begin(text, form.row_bytes)
        self._kernels.send(x, *_not_empty(bytes_of(*columns), form.offsets), slots, counts, False)
        return self.num_sent

    def receive_tokens(self, op, epoch, like, layout, capacity, into=None):
        buffer, first = self._buffer, like[0]
        form = form_of(*like, *[torch.empty((0, buffer.topk), dtype=torch.int32)] * 2)
        *offsets, ids_at, weights_at = form.offsets
        x = self._end(epoch, text_of("ep_dispatch", *like), form.row_bytes)
        if capacity is None:
            capacity = layouts.shapes(buffer, layout, None).rows[-1]
        positions = experts = None
        if capacity == EXACT:
            capacity, positions, experts = self._place_all(x, layout, ids_at)
        elif layout != "compact":
            positions, experts = self._place(x, layout, ids_at, capacity)

        of = layouts.shapes(buffer, layout, capacity)
        outs = into or [t.new_empty((*of.rows, t.size(1))) for t in like]
        ids, counts = (first.new_empty(s, dtype=torch.int32) for s in (of.ids, (buffer.num_ranks,)))
        weights = first.new_empty(of.weights, dtype=torch.float32)
        flat = bytes_of(*(out.flatten(0, -2) for out in outs))
        self._kernels.receive(
            x, layout, *_not_empty(flat, offsets), ids_at, weights_at, buffer.topk,
            buffer.first_expert, buffer.num_local_experts, positions, experts,
            ids if layout == "compact" else None, weights, counts, capacity,
        )  # fmt: skip
        if layout == "compact":
            end = counts.sum().clamp(max=capacity)
            positions = torch.where(self._rows < end, self._rows, -1)[:, None]
            experts = first.new_empty(of.experts, dtype=torch.int32)
        return Placed(outs[0], ids, weights, list(outs[1:]), experts, counts, positions)

    def _place(self, x: DeviceExchange, layout: str, ids_at: int, capacity: int) -> tuple[Tensor, Tensor]:
        """-> (positions, experts) of a layout that is sorted by expert."""
        buffer = self._buffer
        of, make = layouts.shapes(buffer, layout, capacity), x.epochs.new_empty
        positions, experts = (make(shape, dtype=torch.int32) for shape in (of.positions, of.experts))
        here = (buffer.topk, buffer.first_expert, buffer.num_local_experts)
        self._kernels.place(x, layout, ids_at, *here, capacity, positions, experts)
        return positions, experts

    def _place_all(
        self, x: DeviceExchange, layout: str, ids_at: int
    ) -> tuple[int, Tensor | None, Tensor | None]:
        """-> (the places that what came needs, positions and experts of a layout that has them).

        The one call that waits for the device. How many rows came is found by sorting them in either layout.
        """
        positions, experts = self._place(x, "expert", ids_at, self._rows.numel() * self._buffer.topk)
        if layout == "expert":
            return int(experts[-1]), positions, experts
        return int((positions >= 0).any(1).sum()), None, None

    # --- combine ------------------------------------------------------------------------------------------

    def send_back(self, op, y, topk_weights, handle):
        _, _, recv_counts, positions = handle
        weights = None if topk_weights is None else topk_weights.flatten()
        x = self._begin(text_of(op, y), form_of(y).row_bytes)
        self._kernels.combine_send(x, y, weights, positions, recv_counts)
        return self.num_sent

    def receive_back(self, op, epoch, like, slots, send_counts, into=None):
        x = self._end(epoch, text_of(op, like), form_of(like).row_bytes)
        out = like.new_empty((slots.size(0), like.size(1))) if into is None else into
        self._kernels.combine_receive(x, out, slots, send_counts)
        return out

    def sums_back(self, op, parts, handle):
        slots, send_counts, recv_counts, _ = handle
        outs = []
        for y, positions in parts:
            if y.size(1) == 0:
                outs.append(y.new_empty((slots.size(0), 0)))
                continue
            epoch = self.send_back(op, y, None, (slots, send_counts, recv_counts, positions))
            outs.append(self.receive_back(op, epoch, y, slots, send_counts))
        return outs

    def again(self, op, x, handle):
        slots, send_counts, _, _ = handle
        text = text_of(op, x)
        epoch = self._send(text, (x,), slots, send_counts)
        out = x.new_empty((self._rows.numel(), x.size(1)))
        counts = torch.empty_like(send_counts)
        self._kernels.receive(
            self._end(epoch, text, form_of(x).row_bytes), "compact", bytes_of(out), [0], 0, 0, 0, 0, 0,
            None, None, None, None, counts, out.size(0),
        )  # fmt: skip
        return out

    # --- one exchange is one epoch ------------------------------------------------------------------------

    def _begin(self, text: str, row_bytes: int) -> DeviceExchange:
        self._raise_faults()
        expect_room(self.num_sent - self._num_received)
        self.num_sent += 1
        return self._exchange(text, row_bytes)

    def _end(self, epoch: int, text: str, row_bytes: int) -> DeviceExchange:
        self._raise_faults()
        expect_next(epoch, self._num_received + 1)
        self._num_received = epoch
        return self._exchange(text, row_bytes)

    def _exchange(self, text: str, row_bytes: int) -> DeviceExchange:
        buffer = self._buffer
        return DeviceExchange(
            bases=buffer.transport.bases,
            rank=buffer.rank,
            num_ranks=buffer.num_ranks,
            max_tokens=buffer.max_tokens,
            max_row_bytes=buffer.row_bytes,
            epochs=self._epochs,
            kind=zlib.crc32(text.encode()) & 0x7FFFFFFF,
            row_bytes=row_bytes,
            deadline_ns=round(buffer.deadline * 1e9),
            done=self._done,
            status=self._status,
        )

    def give_up(self, reason: str) -> None:
        """The peers raise ValueError with this reason; the buffer is broken on all ranks."""
        self._raise_faults()
        self._fault = ValueError(reason)
        self._leave("gave up", reason)

    def _leave(self, note: str, reason: str, **others: int) -> None:
        """Tell the peers that this rank takes part in nothing any more; who is told looks for the reason."""
        self._buffer.notes.set(f"{note}/{self._buffer.rank}", reason)
        x = self._exchange("", ALIGNMENT)._replace(**others)
        no_slots = torch.empty((0, self._buffer.topk), dtype=torch.int32, device=x.bases.device)
        no_rows = torch.zeros(self._buffer.num_ranks, dtype=torch.int32, device=x.bases.device)
        self._kernels.send(x, [], [], no_slots, no_rows, True)

    def _raise_faults(self) -> None:
        self._raise_new()
        if self._fault:
            raise _again(self._fault)

    def _raise_new(self) -> None:
        if self._fault is None and (word := self._status.item()):
            status = Status.of(word)
            self._fault = fault = self._error_of(status)
            # Where a peer has failed the others find that out as this rank did: nobody is waited for.
            others = {} if status.peer == self._buffer.rank else {"deadline_ns": 0}
            self._leave("gave up", fault.as_text() if isinstance(fault, EpError) else str(fault), **others)
            raise fault

    def _error_of(self, status: Status) -> EpError | ValueError:
        fault, peer, epoch = status
        if fault == Fault.CAPACITY:
            wanted = "a capacity for what came, and a y with the rows of its dispatch"
            return ValueError(f"ep: epoch {epoch}: expected {wanted}, got less")
        if fault == Fault.DISAGREEMENT:
            wanted = f"expected the same exchange on all, got another on rank {peer}"
            return ValueError(f"ep: epoch {epoch}: ranks disagree: {wanted} than on rank {self._buffer.rank}")
        reason = self._buffer.notes.get(f"gave up/{peer}")
        if fault == Fault.ABORTED and reason:
            error = EpError.from_text(reason, epoch)  # of a third rank, perhaps
            return error or ValueError(f"ep: rank {peer} gave up in epoch {epoch}: {reason}")
        if self._buffer.notes.get(f"closed/{peer}") is not None:
            return EpPeerLost([peer], epoch, "it has ended or closed its buffer")
        if self._buffer.has_ended(peer):
            return EpPeerLost([peer], epoch, "it has ended")
        if fault == Fault.ABORTED:
            return EpPeerLost([peer], epoch, "it has failed")
        what = "gave nothing back" if fault == Fault.NOT_RELEASED else "sent nothing"
        return EpTimeout([peer], epoch, f"it {what} within {self._buffer.deadline:g} s")

    def check(self) -> None:
        self._synchronize()
        self._raise_new()

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        if self._fault is None:
            self._leave("closed", "")
        self._synchronize()

    def _synchronize(self) -> None:
        # Not with the device, where kernels of other ranks may wait for this one.
        if self._buffer.device.type == "cuda":
            torch.cuda.current_stream(self._buffer.device).synchronize()


def _not_empty(columns: list[Tensor], offsets: Sequence[int]) -> tuple[list[Tensor], list[int]]:
    """The columns that have bytes, and where they are in the wire row."""
    pairs = [(c, at) for c, at in zip(columns, offsets, strict=True) if c.size(1)]
    return [c for c, _ in pairs], [at for _, at in pairs]


def _again(fault: EpError | ValueError) -> EpError | ValueError:
    if isinstance(fault, EpError):
        return type(fault)(fault.ranks, fault.epoch, f"{fault.detail}; {BROKEN}")
    return ValueError(f"{fault}; {BROKEN}")
