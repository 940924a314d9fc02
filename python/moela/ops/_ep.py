"""How ops that exchange rows with other ranks are defined.

They are functional, but what they do to the other ranks must be done once and in order: torch.compile may
neither leave out, repeat nor swap them, which their registered effect says. The buffer is found by its name,
inside the op; no object crosses.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops.effects import _EffectType, _register_effectful_op

from moela.ep.buffer import EpBuffer, buffer_of
from moela.ops import _check, _spec

LIB = _spec._lib
# The ops of this kind: OpSpec, which is about one device, does not describe them.
DISTRIBUTED: list[str] = []


def define(
    name: str,
    schema: str,
    run: Callable[..., Any],
    fake: Callable[..., Any],
    check: Callable[..., None],
    to_train: str | None = None,
) -> None:
    """Define moela::<name>.

    run, fake, check: (buffer, *args), where args has no `group`, which is the op's last argument. A rank
    whose check fails tells the others before it raises. to_train: what to use where a derivative is wanted,
    of an op that has none.
    """
    op = f"moela::{name}"
    LIB.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))

    def call(*args):
        *args, group = args
        buffer = buffer_of(group, name)
        try:
            check(buffer, *args)
        except ValueError as error:
            buffer.exchange.give_up(str(error))
            raise
        return run(buffer, *args)

    def call_fake(*args):
        *args, group = args
        buffer = buffer_of(group, name)
        check(buffer, *args)
        return fake(buffer, *args)

    LIB.impl(name, call, "CompositeExplicitAutograd")
    torch.library.register_fake(op, call_fake, lib=LIB)
    if "!" not in schema:  # what writes to its arguments is kept and ordered by them
        _register_effectful_op(getattr(torch.ops.moela, name).default, _EffectType.ORDERED)
    DISTRIBUTED.append(name)
    if to_train:
        LIB.impl(name, _without_derivative(name, to_train), "Autograd")


def _without_derivative(name: str, to_train: str) -> Callable[..., Any]:
    def call(*args):
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            raise NotImplementedError(
                f"{name}: has no derivative; {to_train}, or call it under torch.no_grad()"
            )
        with torch._C._AutoDispatchBelowAutograd():
            return getattr(torch.ops.moela, name).default(*args)

    return call


def expect_rows(buffer: EpBuffer, op: str, arg: str, t: Tensor, T: Any, device: torch.device) -> None:
    """[T, *], rows contiguous, on the device of the op's first argument."""
    _check.expect_dim(op, arg, t, 2)
    _check.expect(t.size(0) == T, op, arg, f"T={T}", f"T={t.size(0)}")
    _check.expect_last_dim_contiguous(op, arg, t)
    _check.expect_device(op, arg, t, device, "the first argument")


def expect_on_device(buffer: EpBuffer, op: str, arg: str, t: Tensor) -> None:
    wanted = f"a tensor on {buffer.device}, that of the EpBuffer"
    _check.expect(t.device == buffer.device, op, arg, wanted, t.device, "build it with device=")


def expect_handle(buffer: EpBuffer, op: str, handle: list[Tensor], device: torch.device) -> None:
    """slots, send_counts, recv_counts and positions, of a dispatch with this buffer."""
    slots, send_counts, recv_counts, positions = handle
    R, most = buffer.num_ranks, buffer.num_ranks * buffer.max_tokens
    _check.expect_shape(op, "slots", slots, (slots.size(0), buffer.topk))
    _check.expect_shape(op, "send_counts", send_counts, (R,))
    _check.expect_shape(op, "recv_counts", recv_counts, (R,))
    width = 1 if positions.size(-1) == 1 else buffer.topk
    _check.expect_shape(op, "positions", positions, (most, width))
    for arg, t in zip(("slots", "send_counts", "recv_counts", "positions"), handle, strict=True):
        _check.expect_dtype(op, arg, t.dtype, (torch.int32,))
        _check.expect_contiguous(op, arg, t)
        _check.expect_device(op, arg, t, device, "the first argument")
