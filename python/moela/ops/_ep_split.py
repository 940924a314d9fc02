"""Dispatch and combine in two halves, so that a rank computes while its rows are on their way."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from moela.ep.buffer import EpBuffer
from moela.ep.exchange import EpHandle
from moela.ops import _ep
from moela.ops.ep_combine import OP as COMBINE_OP
from moela.ops.ep_combine import check_rows
from moela.ops.ep_dispatch import EpReceived, as_received, check_layout, check_tokens, fake_outputs


class EpPending(NamedTuple):
    """An exchange that has begun. What follows takes `token`, so that no compiler puts it before."""

    token: Tensor  # [1] int64 in the memory of the host: the epoch
    slots: Tensor
    send_counts: Tensor
    like: tuple[Tensor, ...]  # without rows: the widths and dtypes of what travels


def ep_dispatch_send(
    x: Tensor, topk_ids: Tensor, topk_weights: Tensor, *, group: str, extras: Sequence[Tensor] = ()
) -> EpPending:
    """Begin an `ep_dispatch`, which `ep_dispatch_recv` ends: what is computed between hides the exchange.

    Two exchanges of a buffer may be on their way; they are received in the order in which they were sent. For
    inference: with inputs that require a gradient it raises and names `ep_dispatch`.

    Args:
        x: as in `ep_dispatch`; may be overwritten after the call.
        topk_ids: as there.
        topk_weights: as there.
        group: as there.
        extras: as there.

    Returns:
        What `ep_dispatch_recv` takes.

    Numerics: exact.

    Source: the two halves of DeepEP's low-latency kernels, as ops.
    """
    token, slots, send_counts, like = torch.ops.moela.ep_dispatch_send(
        x, topk_ids, topk_weights, extras, group
    )
    return EpPending(token, slots, send_counts, tuple(like))


def ep_dispatch_recv(
    pending: EpPending, *, group: str, layout: str = "compact", capacity: int | None = None
) -> EpReceived:
    """End an `ep_dispatch_send`.

    Args:
        pending: what it returned; once.
        group: the same.
        layout: as in `ep_dispatch`.
        capacity: as there.

    Returns:
        That of `ep_dispatch`.

    Numerics: exact.

    Source: as `ep_dispatch_send`.
    """
    token, slots, send_counts, like = pending
    *received, recv_counts, positions = torch.ops.moela.ep_dispatch_recv(
        token, slots, like, layout, capacity, group
    )
    return as_received(layout, *received, (slots, send_counts, recv_counts, positions))


def ep_combine_send(
    y: Tensor, handle: EpHandle, *, group: str, topk_weights: Tensor | None = None
) -> EpPending:
    """Begin an `ep_combine`, which `ep_combine_recv` ends. For inference, as `ep_dispatch_send`.

    Args:
        y: as in `ep_combine`; may be overwritten after the call.
        handle: as there.
        group: as there.
        topk_weights: as there.

    Returns:
        What `ep_combine_recv` takes.

    Numerics: as `ep_combine`.

    Source: as `ep_dispatch_send`.
    """
    token, like = torch.ops.moela.ep_combine_send(y, topk_weights, *handle, group)
    return EpPending(token, handle.slots, handle.send_counts, (like,))


def ep_combine_recv(pending: EpPending, *, group: str) -> Tensor:
    """End an `ep_combine_send`.

    Args:
        pending: what it returned; once.
        group: the same.

    Returns:
        [T, hidden], that of `ep_combine`.

    Numerics: as `ep_combine`.

    Source: as `ep_dispatch_send`.
    """
    token, slots, send_counts, [like] = pending
    return torch.ops.moela.ep_combine_recv(token, slots, send_counts, like, group)


def _token(epoch: int) -> Tensor:
    return torch.tensor([epoch], dtype=torch.int64)


def _fake_token() -> Tensor:
    return torch.empty(1, dtype=torch.int64)


def _no_rows(*columns: Tensor) -> list[Tensor]:
    return [column.new_empty((0, column.size(-1))) for column in columns]


def _dispatch_send(buffer: EpBuffer, x, topk_ids, topk_weights, extras):
    epoch, slots, send_counts = buffer.exchange.send_tokens(x, topk_ids, topk_weights, extras)
    return _token(epoch), slots, send_counts, _no_rows(x, *extras)


def _fake_dispatch_send(buffer: EpBuffer, x, topk_ids, topk_weights, extras):
    slots = x.new_empty(topk_ids.shape, dtype=torch.int32)
    return _fake_token(), slots, x.new_empty(buffer.num_ranks, dtype=torch.int32), _no_rows(x, *extras)


def _check_dispatch_send(buffer: EpBuffer, x, topk_ids, topk_weights, extras) -> None:
    check_tokens(buffer, "ep_dispatch_send", x, topk_ids, topk_weights, extras)


def _dispatch_recv(buffer: EpBuffer, token, slots, like, layout, capacity):
    op = "ep_dispatch_recv"
    return tuple(buffer.exchange.receive_tokens(op, int(token), like, layout, capacity))


def _fake_dispatch_recv(buffer: EpBuffer, token, slots, like, layout, capacity):
    return tuple(fake_outputs(buffer, like, layout, capacity))


def _check_dispatch_recv(buffer: EpBuffer, token, slots, like, layout, capacity) -> None:
    check_layout("ep_dispatch_recv", layout, capacity)


def _combine_send(buffer: EpBuffer, y, topk_weights, *handle):
    epoch = buffer.exchange.send_back(COMBINE_OP, y.flatten(0, -2), topk_weights, handle)
    return _token(epoch), *_no_rows(y)


def _fake_combine_send(buffer: EpBuffer, y, topk_weights, *handle):
    return _fake_token(), *_no_rows(y)


def _check_combine_send(buffer: EpBuffer, y, topk_weights, *handle) -> None:
    check_rows(buffer, "ep_combine_send", y, topk_weights, *handle)


def _combine_recv(buffer: EpBuffer, token, slots, send_counts, like) -> Tensor:
    return buffer.exchange.receive_back(COMBINE_OP, int(token), like, slots, send_counts)


def _fake_combine_recv(buffer: EpBuffer, token, slots, send_counts, like) -> Tensor:
    return like.new_empty((slots.size(0), like.size(1)))


def _check_combine_recv(buffer: EpBuffer, token, slots, send_counts, like) -> None:
    _ep.expect_rows(buffer, "ep_combine_recv", "slots", slots, slots.size(0), like.device)


TOKENS = "Tensor x, Tensor topk_ids, Tensor topk_weights, Tensor[] extras"
HANDLE = "Tensor slots, Tensor send_counts, Tensor recv_counts, Tensor positions"
_ep.define(
    "ep_dispatch_send",
    f"({TOKENS}, str group) -> (Tensor, Tensor, Tensor, Tensor[])",
    _dispatch_send,
    _fake_dispatch_send,
    _check_dispatch_send,
    to_train="train with ep_dispatch",
)
_ep.define(
    "ep_dispatch_recv",
    "(Tensor token, Tensor slots, Tensor[] like, str layout, SymInt? capacity, str group) -> "
    "(Tensor, Tensor, Tensor, Tensor[], Tensor, Tensor, Tensor)",
    _dispatch_recv,
    _fake_dispatch_recv,
    _check_dispatch_recv,
    to_train="train with ep_dispatch",
)
_ep.define(
    "ep_combine_send",
    f"(Tensor y, Tensor? topk_weights, {HANDLE}, str group) -> (Tensor, Tensor)",
    _combine_send,
    _fake_combine_send,
    _check_combine_send,
    to_train="train with ep_combine",
)
_ep.define(
    "ep_combine_recv",
    "(Tensor token, Tensor slots, Tensor send_counts, Tensor like, str group) -> Tensor",
    _combine_recv,
    _fake_combine_recv,
    _check_combine_recv,
    to_train="train with ep_combine",
)
