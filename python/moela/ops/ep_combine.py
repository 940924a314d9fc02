"""Rows of the experts back to their tokens."""

import math

import torch
from torch import Tensor

from moela.ep import exchange
from moela.ep.buffer import EpBuffer
from moela.ep.exchange import EpHandle
from moela.ep.rows import gather_rows
from moela.ep.wire import as_bytes
from moela.ops import _check, _ep

OP = "ep_combine"


def ep_combine(y: Tensor, handle: EpHandle, *, group: str, topk_weights: Tensor | None = None) -> Tensor:
    """Compute ``out[t] = sum of what the experts made of token t``, on the rank that has the token.

    Every rank of the group calls it, each with the handle of the same `ep_dispatch`.

    Args:
        y: bfloat16, float16 or float32, the same on all ranks: [capacity, hidden], "masked": [E, capacity,
            hidden], in the layout of the dispatch; last dimension contiguous. With the compact layout a row
            is the weighted sum over the experts of this rank already, as `fused_experts` gives it. Rows that
            no token came to are not read.
        handle: of the dispatch.
        group: the name of the EpBuffer of the dispatch.
        topk_weights: [capacity] or [E, capacity] float32, that of the dispatch: y is multiplied by it. Not
            with the compact layout.

    Returns:
        [T, hidden] of y's dtype; 0 where all ids of a token were dropped. Differentiable with respect to y
        and topk_weights; backward is an exchange too, so that every rank has to run it.

    Numerics: per rank the sum over the token's experts in the order of k, then over ranks in their order;
        both float32, products and sums rounded separately, and rounded to y's dtype. The same bits with every
        transport and in every run.

    Source: DeepSeek-V3 report, section 3.2.2.
    """
    return torch.ops.moela.ep_combine(y, topk_weights, *handle, group)


def check_rows(buffer: EpBuffer, op: str, y, topk_weights, *handle) -> None:
    _check.expect(y.dim() in (2, 3), op, "y", "a 2-D or 3-D tensor", f"{y.dim()}-D")
    _check.expect_dtype(op, "y", y.dtype, _check.FLOAT_DTYPES)
    _check.expect(y.size(-1) == buffer.hidden, op, "y", f"hidden={buffer.hidden}", f"hidden={y.size(-1)}")
    (_check.expect_last_dim_contiguous if y.dim() == 2 else _check.expect_contiguous)(op, "y", y)
    _ep.expect_handle(buffer, op, handle, y.device)
    _ep.expect_on_device(buffer, op, "y", y)
    row_bytes = exchange.row_bytes(y.flatten(0, -2), topk=0)
    room = f"rows of at most {buffer.row_bytes} bytes"
    _check.expect(row_bytes <= buffer.row_bytes, op, "y", room, row_bytes, f"build it with {row_bytes=}")
    if topk_weights is not None:
        is_pairwise = handle[3].size(1) == buffer.topk
        _check.expect(is_pairwise, op, "topk_weights", "None with the compact layout", "a tensor")
        _check.expect_dtype(op, "topk_weights", topk_weights.dtype, (torch.float32,))
        _check.expect_shape(op, "topk_weights", topk_weights, y.shape[:-1])
        _check.expect_contiguous(op, "topk_weights", topk_weights)
        _check.expect_device(op, "topk_weights", topk_weights, y.device, "y")


def _check_args(buffer: EpBuffer, y, topk_weights, *handle) -> None:
    check_rows(buffer, OP, y, topk_weights, *handle)


def run(buffer: EpBuffer, y, topk_weights, *handle, into: Tensor | None = None) -> Tensor:
    y = y.flatten(0, -2)
    epoch = buffer.exchange.send_back(OP, y, topk_weights, handle)
    return buffer.exchange.receive_back(OP, epoch, y, handle[0], handle[1], into)


def _fake(buffer: EpBuffer, y, topk_weights, slots, *_) -> Tensor:
    return y.new_empty((slots.size(0), y.size(-1)))


_ep.define(
    OP,
    "(Tensor y, Tensor? topk_weights, Tensor slots, Tensor send_counts, Tensor recv_counts, Tensor positions,"
    " str group) -> Tensor",
    run,
    _fake,
    _check_args,
)


# --- the derivative: gradients travel as the tokens did ---------------------------------------------------

BACKWARD = "ep_combine_backward"


def _check_backward(buffer: EpBuffer, grad, shape, y, topk_weights, *handle) -> None:
    _ep.expect_handle(buffer, BACKWARD, handle, grad.device)


def _backward(buffer: EpBuffer, grad, shape, y, topk_weights, *handle) -> tuple[Tensor, Tensor]:
    rows = buffer.exchange.again(BACKWARD, grad, handle)  # [N, hidden]
    positions, num_places = handle[3][: rows.size(0)], math.prod(shape[:-1])
    row_of = positions.new_full((num_places + 1,), -1)  # the last one for what has no place
    of_rows = torch.arange(rows.size(0), dtype=torch.int32, device=grad.device)[:, None]
    row_of[torch.where(positions >= 0, positions, num_places).long()] = of_rows.expand(positions.shape)
    row_of = row_of[:num_places]
    grad_y = grad.new_empty((num_places, shape[-1]))  # of each place: the gradient of its row
    gather_rows(as_bytes(rows), row_of, as_bytes(grad_y))
    if topk_weights is None:
        return grad_y.view(shape), grad.new_zeros(0, dtype=torch.float32)
    wanted, is_place = grad_y.float(), row_of >= 0
    grad_weights = torch.where(is_place, (wanted * y.flatten(0, -2).float()).sum(-1), 0)
    weights = torch.where(is_place, topk_weights.flatten(), 0)
    return (wanted * weights[:, None]).to(grad.dtype).view(shape), grad_weights.view_as(topk_weights)


def _fake_backward(buffer: EpBuffer, grad, shape, y, topk_weights, *_) -> tuple[Tensor, Tensor]:
    weights = grad.new_empty(0 if topk_weights is None else topk_weights.shape, dtype=torch.float32)
    return grad.new_empty(shape), weights


_ep.define(
    BACKWARD,
    "(Tensor grad, SymInt[] shape, Tensor? y, Tensor? topk_weights, Tensor slots, Tensor send_counts, "
    "Tensor recv_counts, Tensor positions, str group) -> (Tensor, Tensor)",
    _backward,
    _fake_backward,
    _check_backward,
    to_train=f"it is the derivative of {OP}",
)


def _setup_context(ctx, inputs, output) -> None:
    y, topk_weights, *handle, ctx.group = inputs
    ctx.shape, ctx.is_weighted = y.shape, topk_weights is not None
    ctx.save_for_backward(*([y, topk_weights] if ctx.is_weighted else []), *handle)


def _derivative(ctx, grad: Tensor):
    *weighted, slots, send_counts, recv_counts, positions = ctx.saved_tensors
    y, topk_weights = weighted or (None, None)
    grad_y, grad_weights = torch.ops.moela.ep_combine_backward(
        grad.contiguous(), ctx.shape, y, topk_weights, slots, send_counts, recv_counts, positions, ctx.group
    )
    return grad_y, grad_weights if ctx.is_weighted else None, None, None, None, None, None


torch.library.register_autograd(f"moela::{OP}", _derivative, setup_context=_setup_context, lib=_ep.LIB)
