"""What dispatch and combine do between the caller's tensors and a transport: on the host, or by kernels.

A *row* is a token on its way to a rank. Sent rows are in send order: by destination, then token. Received
rows are in received order: by source, then token. Both are pure functions of topk_ids.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from moela.ep.wire import WireFormat, as_bytes, wire_format

EXACT = -1  # a capacity: that of what came
MAX_IN_FLIGHT = 2
BROKEN = "this EpBuffer is broken: close it and build another"


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


class Exchange(ABC):
    """What the ops call. A send and its receive are one epoch; at most MAX_IN_FLIGHT are on their way, and
    they are received in the order in which they were sent.

    op: who asks; of a send back and its receive the same, on all ranks. Rows go *back* from where they were
    received to their tokens, and *again* from tokens to where a dispatch has sent them.
    """

    num_sent: int

    @abstractmethod
    def send_tokens(
        self,
        x: Tensor,
        topk_ids: Tensor,
        topk_weights: Tensor,
        extras: Sequence[Tensor],
        stays: bool = False,
    ) -> tuple[int, Tensor, Tensor]:
        """-> (epoch, slots, send_counts).

        stays: receive_tokens will be given x and extras again: what this rank sends itself may be taken from
        there.
        """

    @abstractmethod
    def receive_tokens(
        self,
        op: str,
        epoch: int,
        like: Sequence[Tensor],
        layout: str,
        capacity: int | None,
        into: Sequence[Tensor] | None = None,
    ) -> Placed:
        """like: x and the extras, of any number of rows. capacity None: room for all, EXACT: no row to spare.

        into: what x and the extras are written to, in place of new tensors.
        """

    @abstractmethod
    def send_back(self, op: str, y: Tensor, topk_weights: Tensor | None, handle: Sequence[Tensor]) -> int:
        """The sum of the places of each received row, times their weights -> the epoch.

        y: [*, H], rows of the layout of the dispatch. Float32, in the order of k, rounded once.
        """

    @abstractmethod
    def receive_back(
        self,
        op: str,
        epoch: int,
        like: Tensor,
        slots: Tensor,
        send_counts: Tensor,
        into: Tensor | None = None,
    ) -> Tensor:
        """-> [T, H]: the sum of what a token's rows came back as, float32, in the order of the ranks, rounded
        once. like: [*, H]. into: what it is written to."""

    @abstractmethod
    def sums_back(
        self, op: str, parts: Sequence[tuple[Tensor, Tensor]], handle: Sequence[Tensor]
    ) -> list[Tensor]:
        """What send_back and receive_back do, for each y, [*, H], and its positions; without weights."""

    @abstractmethod
    def again(self, op: str, x: Tensor, handle: Sequence[Tensor]) -> Tensor:
        """Rows of [T, H] to where a dispatch sent them -> [N, H] in received order; more rows may follow."""

    @abstractmethod
    def give_up(self, reason: str) -> None:
        """Tell the peers that this rank cannot take part in the next exchange."""

    @abstractmethod
    def check(self) -> None:
        """Raise what has gone wrong and was not raised yet."""

    @abstractmethod
    def close(self) -> None:
        """Take no part any more: peers are told."""


def form_of(*columns: Tensor) -> WireFormat:
    # What is compiled for any sizes has symbols here, and is for one width from now on.
    return wire_format(tuple([int(c.size(1)) * c.element_size() for c in columns]))


def bytes_of(*columns: Tensor) -> list[Tensor]:
    return [as_bytes(column) for column in columns]


def text_of(op: str, *columns: Tensor) -> str:
    """What the ranks have to agree on."""
    return _text_of(op, *[(c.dtype, c.size(1)) for c in columns])


@lru_cache(maxsize=256)
def _text_of(op: str, *columns: tuple[torch.dtype, int]) -> str:
    return " ".join([op, *(f"{str(dtype).removeprefix('torch.')}[{width}]" for dtype, width in columns)])


def token_form(x: Tensor, *extras: Tensor, topk: int) -> WireFormat:
    """Of the row that brings a token: with its ids and weights."""
    return wire_format((*form_of(x, *extras).widths, 4 * topk, 4 * topk))


def row_bytes(x: Tensor, *extras: Tensor, topk: int) -> int:
    return token_form(x, *extras, topk=topk).row_bytes


def expect_next(epoch: int, wanted: int) -> None:
    if epoch != wanted:
        raise ValueError(
            f"ep: token: expected the exchange of epoch {wanted}, got that of {epoch}; "
            "receive each once, in the order in which they were sent"
        )


def expect_room(in_flight: int) -> None:
    if in_flight >= MAX_IN_FLIGHT:
        raise ValueError(f"ep: expected at most {MAX_IN_FLIGHT} exchanges sent and not received, got another")
