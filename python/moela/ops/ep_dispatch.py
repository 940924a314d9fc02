"""Tokens to the ranks of their experts."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from moela.ep import exchange
from moela.ep.buffer import EpBuffer
from moela.ep.exchange import EpHandle
from moela.ep.layout import LAYOUTS, at, shapes
from moela.ops import _check, _ep

OP = "ep_dispatch"
ID_DTYPES = (torch.int32, torch.int64)


class EpReceived(NamedTuple):
    """What came to the experts of this rank, in the layout that was asked for."""

    x: Tensor
    topk_ids: Tensor | None
    topk_weights: Tensor
    extras: tuple[Tensor, ...]
    expert_offsets: Tensor | None
    expert_counts: Tensor | None
    handle: EpHandle


def ep_dispatch(
    x: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    *,
    group: str,
    extras: Sequence[Tensor] = (),
    layout: str = "compact",
    capacity: int | None = None,
) -> EpReceived:
    """Send ``x[t]`` to every rank that has an expert of ``topk_ids[t]``, and return what came to this one.

    Every rank of the group calls it, with its own tokens. A token goes to a rank once, however many of its
    experts are there. What is received is sorted by the rank that it is from, then by token: a function of
    all topk_ids alone.

    Args:
        x: [T, hidden] of any dtype, the same on all ranks; last dimension contiguous, rows may be strided. T
            may be 0 and differs between ranks; at most max_tokens of the buffer.
        topk_ids: [T, topk] int32 or int64, last dimension contiguous: ids of all ranks' experts. An id below
            0 or at least num_experts is dropped. A token may have an expert twice.
        topk_weights: [T, topk] float32, last dimension contiguous.
        group: the name of an open EpBuffer.
        extras: what else travels with a token, as scale factors: [T, *] each, as x, of any dtypes. They have
            no gradient.
        layout: of what is returned; N rows came, E is the number of experts of this rank.
            "compact": a row per token that came, as `fused_experts` takes it.
            "expert": a row per token and expert of this rank that it has, sorted by expert, then as
            received, then by k: as `grouped_gemm` takes it.
            "masked": the same, at the beginning of [E, capacity]: as `grouped_fp8_gemm_masked` takes it.
        capacity: of the layout; if more comes, this rank raises ValueError, and the others do in their
            next exchange. None: num_ranks * max_tokens, for "expert" times min(topk, E): as much as can
            come, unless a token has an expert twice.

    Returns:
        x [capacity, hidden] ("masked": [E, capacity, hidden]), and extras alike: bit for bit what was sent.
        topk_ids [capacity, topk] int32, "compact" only: the number of the expert on this rank; -1: not here.
        topk_weights [capacity, topk] float32, 0 where the id is -1; otherwise those of the rows, [capacity]
            and [E, capacity].
        expert_offsets [E + 1] int32, "expert" only; expert_counts [E] int32, "masked" only.
        handle: for `ep_combine`.
        All rows are written: past what came they are zero bytes, ids -1. Differentiable with respect to x and
        topk_weights; backward is an exchange too, so that every rank has to run it.

    Numerics: exact. Gradient of x: per rank the sum over the token's experts in the order of k, then over
        ranks in their order, both float32 and rounded to x's dtype.

    Source: DeepSeek-V3 report, section 3.2.2; layouts as DeepGEMM's grouped GEMMs take them.
    """
    x, ids, weights, extras, experts, *handle = torch.ops.moela.ep_dispatch(
        x, topk_ids, topk_weights, extras, layout, capacity, group
    )
    return as_received(layout, x, ids, weights, extras, experts, handle)


def as_received(layout: str, x, ids, weights, extras, experts, handle) -> EpReceived:
    return EpReceived(
        x=x,
        topk_ids=ids if layout == "compact" else None,
        topk_weights=weights,
        extras=tuple(extras),
        expert_offsets=experts if layout == "expert" else None,
        expert_counts=experts if layout == "masked" else None,
        handle=EpHandle(*handle),
    )


def check_tokens(buffer: EpBuffer, op: str, x, topk_ids, topk_weights, extras) -> None:
    _check.expect_dim(op, "x", x, 2)
    _ep.expect_on_device(buffer, op, "x", x)
    T, topk = x.size(0), buffer.topk
    _ep.expect_rows(buffer, op, "x", x, T, x.device)
    _check.expect(x.size(1) == buffer.hidden, op, "x", f"hidden={buffer.hidden}", f"hidden={x.size(1)}")
    most = f"at most max_tokens={buffer.max_tokens} rows"
    _check.expect(buffer.max_tokens >= T, op, "x", most, T, "build the EpBuffer for more")
    _ep.expect_rows(buffer, op, "topk_ids", topk_ids, T, x.device)
    _check.expect_dtype(op, "topk_ids", topk_ids.dtype, ID_DTYPES)
    _check.expect(topk_ids.size(1) == topk, op, "topk_ids", f"topk={topk}", f"topk={topk_ids.size(1)}")
    _check.expect_dtype(op, "topk_weights", topk_weights.dtype, (torch.float32,))
    _check.expect_shape(op, "topk_weights", topk_weights, (T, topk))
    _ep.expect_rows(buffer, op, "topk_weights", topk_weights, T, x.device)
    for i, extra in enumerate(extras):
        _ep.expect_rows(buffer, op, f"extras[{i}]", extra, T, x.device)
    needed = exchange.row_bytes(x, *extras, topk=topk)
    room = f"rows of at most {buffer.row_bytes} bytes"
    _check.expect(needed <= buffer.row_bytes, op, "extras", room, needed, f"build it with row_bytes={needed}")


def check_layout(op: str, layout: str, capacity: int | None, of: Sequence[str] = LAYOUTS) -> None:
    _check.expect(layout in of, op, "layout", _check.one_of(of), repr(layout))
    _check.expect(capacity is None or capacity >= 0, op, "capacity", "0 or more", capacity)


def _check_args(buffer: EpBuffer, x, topk_ids, topk_weights, extras, layout, capacity) -> None:
    check_tokens(buffer, OP, x, topk_ids, topk_weights, extras)
    check_layout(OP, layout, capacity)


def run(buffer: EpBuffer, x, topk_ids, topk_weights, extras, layout, capacity, into=None):
    epoch, slots, send_counts = buffer.exchange.send_tokens(x, topk_ids, topk_weights, extras)
    placed = buffer.exchange.receive_tokens(OP, epoch, (x, *extras), layout, capacity, into)
    return returned(placed, slots, send_counts)


def returned(placed: exchange.Placed, slots: Tensor, send_counts: Tensor) -> tuple:
    *outputs, recv_counts, positions = placed
    return *outputs, slots, send_counts, recv_counts, positions


def fake_outputs(buffer: EpBuffer, like: Sequence[Tensor], layout: str, capacity: int | None) -> list:
    """x, topk_ids, topk_weights, extras, experts, recv_counts and positions, without values."""
    of, first = shapes(buffer, layout, capacity), like[0]
    x, *extras = (t.new_empty((*of.rows, t.size(1))) for t in like)
    ids, experts, recv_counts, positions = (
        first.new_empty(shape, dtype=torch.int32)
        for shape in (of.ids, of.experts, (buffer.num_ranks,), of.positions)
    )
    return [x, ids, first.new_empty(of.weights, dtype=torch.float32), extras, experts, recv_counts, positions]


def _fake(buffer: EpBuffer, x, topk_ids, topk_weights, extras, layout, capacity):
    outputs = fake_outputs(buffer, (x, *extras), layout, capacity)
    slots = x.new_empty(topk_ids.shape, dtype=torch.int32)
    return returned(outputs, slots, x.new_empty((buffer.num_ranks,), dtype=torch.int32))


OUTPUTS = "Tensor, Tensor, Tensor, Tensor[], Tensor, Tensor, Tensor, Tensor, Tensor"
_ep.define(
    OP,
    "(Tensor x, Tensor topk_ids, Tensor topk_weights, Tensor[] extras, str layout, SymInt? capacity, "
    f"str group) -> ({OUTPUTS})",
    run,
    _fake,
    _check_args,
)


# --- the derivative: rows go back as they came ------------------------------------------------------------

BACKWARD = "ep_dispatch_backward"


def _check_backward(buffer: EpBuffer, grad_x, grad_weights, topk_ids, layout, *handle) -> None:
    _ep.expect_handle(buffer, BACKWARD, handle, grad_x.device)


def _backward(buffer: EpBuffer, grad_x, grad_weights, topk_ids, layout, *handle):
    positions = handle[3]
    if layout == "compact":
        weights, rows = torch.where(topk_ids >= 0, grad_weights, 0), positions  # [capacity, topk]
    else:
        weights = at(grad_weights, positions)  # [R * max_tokens, topk], in received order
        rows = torch.arange(weights.size(0), dtype=torch.int32, device=weights.device)[:, None]
    parts = [(grad_x.flatten(0, -2), positions), (weights, rows)]
    return tuple(buffer.exchange.sums_back(BACKWARD, parts, handle))


def _fake_backward(buffer: EpBuffer, grad_x, grad_weights, topk_ids, layout, slots, *_):
    return grad_x.new_empty((slots.size(0), grad_x.size(-1))), grad_weights.new_empty(slots.shape)


_ep.define(
    BACKWARD,
    "(Tensor grad_x, Tensor grad_weights, Tensor topk_ids, str layout, Tensor slots, Tensor send_counts, "
    "Tensor recv_counts, Tensor positions, str group) -> (Tensor, Tensor)",
    _backward,
    _fake_backward,
    _check_backward,
    to_train=f"it is the derivative of {OP}",
)


def save_for_backward(ctx, layout: str, group: str, output) -> None:
    _, ids, _, _, _, *handle = output
    ctx.layout, ctx.group = layout, group
    ctx.save_for_backward(ids, *handle)


def gradients(ctx, grad_x: Tensor, grad_weights: Tensor) -> tuple[Tensor | None, Tensor]:
    """Of x and topk_weights."""
    ids, *handle = ctx.saved_tensors
    is_wanted = ctx.needs_input_grad[0]
    if not is_wanted:  # x may be FP8, which has none: rows without columns travel
        grad_x = grad_weights.new_zeros((*grad_x.shape[:-1], 0))
    x, weights = torch.ops.moela.ep_dispatch_backward(
        grad_x.contiguous(), grad_weights.contiguous(), ids, ctx.layout, *handle, ctx.group
    )
    return x if is_wanted else None, weights


def _setup_context(ctx, inputs, output) -> None:
    _, _, _, extras, layout, _, group = inputs
    ctx.num_extras = len(extras)
    save_for_backward(ctx, layout, group, output)


def _derivative(ctx, grad_x, _ids, grad_weights, *_):
    x, weights = gradients(ctx, grad_x, grad_weights)
    return x, None, weights, [None] * ctx.num_extras, None, None, None


torch.library.register_autograd(f"moela::{OP}", _derivative, setup_context=_setup_context, lib=_ep.LIB)
