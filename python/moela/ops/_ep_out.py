"""Dispatch and combine into tensors of the caller: the same memory call after call."""

from collections.abc import Sequence

import torch
from torch import Tensor

from moela.ep.buffer import EpBuffer
from moela.ep.exchange import EpHandle
from moela.ops import _check, _ep
from moela.ops.ep_combine import check_rows
from moela.ops.ep_combine import run as run_combine
from moela.ops.ep_dispatch import EpReceived, check_layout, check_tokens, fake_outputs, returned
from moela.ops.ep_dispatch import run as run_dispatch


def ep_dispatch_out(
    x: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    *,
    group: str,
    out: EpReceived,
    extras: Sequence[Tensor] = (),
    layout: str = "compact",
) -> None:
    """`ep_dispatch` into `out`, all of it: what an `ep_dispatch` of the same layout returned."""
    experts = out.expert_offsets if layout == "expert" else out.expert_counts
    torch.ops.moela.ep_dispatch_out.default(
        x, topk_ids, topk_weights, extras, layout, out.x, out.topk_ids, out.topk_weights, list(out.extras),
        experts, *out.handle, group,
    )  # fmt: skip


def ep_combine_out(
    y: Tensor, handle: EpHandle, *, group: str, out: Tensor, topk_weights: Tensor | None = None
) -> None:
    """`ep_combine` into `out`, [T, hidden] of y's dtype, contiguous."""
    torch.ops.moela.ep_combine_out.default(y, topk_weights, *handle, out, group)


def _check_dispatch(buffer: EpBuffer, x, topk_ids, topk_weights, extras, layout, *out) -> None:
    op, capacity = "ep_dispatch_out", out[0].size(-2)
    check_tokens(buffer, op, x, topk_ids, topk_weights, extras)
    check_layout(op, layout, capacity)
    names = (
        "x",
        "topk_ids",
        "topk_weights",
        "extras",
        "experts",
        "slots",
        "send_counts",
        "recv_counts",
        "positions",
    )
    wanted = fake_outputs(buffer, [t.to("meta") for t in (x, *extras)], layout, capacity)
    handle = (x.new_empty(s, dtype=torch.int32, device="meta") for s in (topk_ids.shape, (buffer.num_ranks,)))
    for name, mine, want in zip(names, out, returned(wanted, *handle), strict=True):
        pairs = zip(mine, want, strict=True) if isinstance(want, list) else [(mine, want)]
        for one, of_call in pairs:
            if one is not None:
                _expect_like(op, f"out.{name}", one, of_call, x.device)


def _expect_like(op: str, name: str, mine: Tensor, wanted: Tensor, device: torch.device) -> None:
    _check.expect_dtype(op, name, mine.dtype, (wanted.dtype,))
    _check.expect_shape(op, name, mine, wanted.shape)
    _check.expect_device(op, name, mine, device, "the inputs")
    _check.expect_contiguous(op, name, mine)


def _dispatch(buffer: EpBuffer, x, topk_ids, topk_weights, extras, layout, *out) -> None:
    into = (out[0], *out[3])  # x and extras: the others are small, and copied
    result = run_dispatch(buffer, x, topk_ids, topk_weights, extras, layout, out[0].size(-2), into)
    pairs = [
        pair for pair in zip(out[1:3] + out[4:], result[1:3] + result[4:], strict=True) if pair[0] is not None
    ]
    torch._foreach_copy_(*zip(*pairs, strict=True))


def _check_combine(
    buffer: EpBuffer, y, topk_weights, slots, send_counts, recv_counts, positions, out
) -> None:
    op = "ep_combine_out"
    check_rows(buffer, op, y, topk_weights, slots, send_counts, recv_counts, positions)
    _expect_like(op, "out", out, y.new_empty((slots.size(0), y.size(-1)), device="meta"), y.device)


def _combine(buffer: EpBuffer, y, topk_weights, *handle_and_out) -> None:
    *handle, out = handle_and_out
    run_combine(buffer, y, topk_weights, *handle, into=out)


_ep.define(
    "ep_dispatch_out",
    "(Tensor x, Tensor topk_ids, Tensor topk_weights, Tensor[] extras, str layout, Tensor(a!) out_x, "
    "Tensor(b!)? out_topk_ids, Tensor(c!) out_topk_weights, Tensor(d!)[] out_extras, "
    "Tensor(e!)? out_experts, "
    "Tensor(f!) out_slots, Tensor(g!) out_send_counts, Tensor(h!) out_recv_counts, Tensor(i!) out_positions, "
    "str group) -> ()",
    _dispatch,
    lambda *_: None,
    _check_dispatch,
    to_train="train with ep_dispatch",
)
_ep.define(
    "ep_combine_out",
    "(Tensor y, Tensor? topk_weights, Tensor slots, Tensor send_counts, Tensor recv_counts, "
    "Tensor positions, Tensor(a!) out, str group) -> ()",
    _combine,
    lambda *_: None,
    _check_combine,
    to_train="train with ep_combine",
)
