"""Tokens to the ranks of their experts, in tensors that are as large as what came."""

from collections.abc import Sequence

import torch
from torch import Tensor

from moela.ep.buffer import EpBuffer
from moela.ep.exchange import EXACT
from moela.ops import _ep
from moela.ops.ep_dispatch import (
    OUTPUTS,
    EpReceived,
    as_received,
    check_layout,
    check_tokens,
    fake_outputs,
    gradients,
    returned,
    save_for_backward,
)

OP = "ep_dispatch_dynamic"


def ep_dispatch_dynamic(
    x: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    *,
    group: str,
    extras: Sequence[Tensor] = (),
    layout: str = "compact",
) -> EpReceived:
    """Compute `ep_dispatch` with ``capacity = the rows that came``: for training, where memory counts.

    The size is known when the exchange is over: a device is waited for, and what is compiled sees a size that
    it does not know (an unbacked one).

    Args:
        x: as in `ep_dispatch`.
        topk_ids: as there.
        topk_weights: as there.
        group: as there.
        extras: as there.
        layout: "compact" or "expert".

    Returns:
        That of `ep_dispatch`, differentiable alike; there may be no row at all.

    Numerics: exact; gradients as those of `ep_dispatch`.

    Source: as `ep_dispatch`.
    """
    x, ids, weights, extras, experts, *handle = torch.ops.moela.ep_dispatch_dynamic(
        x, topk_ids, topk_weights, extras, layout, group
    )
    return as_received(layout, x, ids, weights, extras, experts, handle)


def _check_args(buffer: EpBuffer, x, topk_ids, topk_weights, extras, layout) -> None:
    check_tokens(buffer, OP, x, topk_ids, topk_weights, extras)
    check_layout(OP, layout, None, ("compact", "expert"))


def _run(buffer: EpBuffer, x, topk_ids, topk_weights, extras, layout):
    epoch, slots, send_counts = buffer.exchange.send_tokens(x, topk_ids, topk_weights, extras)
    placed = buffer.exchange.receive_tokens(OP, epoch, (x, *extras), layout, EXACT)
    return returned(placed, slots, send_counts)


def _fake(buffer: EpBuffer, x, topk_ids, topk_weights, extras, layout):
    num_rows = torch.library.get_ctx().new_dynamic_size()
    outputs = fake_outputs(buffer, (x, *extras), layout, num_rows)
    slots = x.new_empty(topk_ids.shape, dtype=torch.int32)
    return returned(outputs, slots, x.new_empty((buffer.num_ranks,), dtype=torch.int32))


_ep.define(
    OP,
    "(Tensor x, Tensor topk_ids, Tensor topk_weights, Tensor[] extras, str layout, str group) "
    f"-> ({OUTPUTS})",
    _run,
    _fake,
    _check_args,
)


def _setup_context(ctx, inputs, output) -> None:
    _, _, _, extras, layout, group = inputs
    ctx.num_extras = len(extras)
    save_for_backward(ctx, layout, group, output)


def _derivative(ctx, grad_x, _ids, grad_weights, *_):
    x, weights = gradients(ctx, grad_x, grad_weights)
    return x, None, weights, [None] * ctx.num_extras, None, None


torch.library.register_autograd(f"moela::{OP}", _derivative, setup_context=_setup_context, lib=_ep.LIB)
