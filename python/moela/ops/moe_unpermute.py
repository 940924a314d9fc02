"""Experts back to tokens: the weighted sum of a token's rows."""

from typing import Any

import torch
from torch import Tensor

from moela.ops import _check
from moela.ops._spec import Autograd, OpSpec, exactly, register
from moela.reference import moe_unpermute as reference

OP = "moe_unpermute"


def moe_unpermute(y: Tensor, topk_weights: Tensor | None, inverse: Tensor) -> Tensor:
    """Compute ``out[t] = sum over slots j of topk_weights[t, j] * y[inverse[t, j]]``.

    Args:
        y: [R, H] bfloat16, float16 or float32, what the experts made of the rows of `moe_permute`; last
            dimension contiguous, rows may be strided. R and H may be 0.
        topk_weights: [T, topk] float32, last dimension contiguous; None: the plain sum.
        inverse: [T, topk] int32, last dimension contiguous. What is no row of y, as -1, contributes
            nothing: no row is read for it, so a NaN there cannot leak.

    Returns:
        [T, H] of y's dtype. Differentiable with respect to y and topk_weights; where inverse names each row
        once, as that of `moe_permute` does, the derivative is deterministic.

    Numerics: float32, slot after slot from 0, products and sums rounded separately, then one rounding to y's
        dtype: the same bits on every backend. A row of the result depends on that row of topk_weights and
        inverse, and on the rows of y that it names.

    Source: DeepSeek-V3, inference/model.py, MoE, which adds expert after expert instead; slots are summed in
        order by transformers 5.23.0 (integrations/moe.py) too.
    """
    return torch.ops.moela.moe_unpermute(y, topk_weights, inverse)


def moe_unpermute_out(y: Tensor, topk_weights: Tensor | None, inverse: Tensor, *, out: Tensor) -> None:
    """`moe_unpermute` into `out`, contiguous."""
    torch.ops.moela.moe_unpermute_out(y, topk_weights, inverse, out=out)


def _check_args(y, topk_weights, inverse) -> None:
    _check.expect_dim(OP, "y", y, 2)
    _check.expect_dtype(OP, "y", y.dtype, _check.FLOAT_DTYPES)
    _check.expect_last_dim_contiguous(OP, "y", y)
    _check.expect_dim(OP, "inverse", inverse, 2)
    _check.expect_dtype(OP, "inverse", inverse.dtype, (torch.int32,))
    _check.expect_last_dim_contiguous(OP, "inverse", inverse)
    _check.expect_device(OP, "inverse", inverse, y.device, "y")
    if topk_weights is not None:
        _check.expect_dtype(OP, "topk_weights", topk_weights.dtype, (torch.float32,))
        _check.expect_shape(OP, "topk_weights", topk_weights, inverse.shape)
        _check.expect_last_dim_contiguous(OP, "topk_weights", topk_weights)
        _check.expect_device(OP, "topk_weights", topk_weights, y.device, "y")


def _empty(y, topk_weights, inverse) -> tuple[Tensor]:
    return (y.new_empty((inverse.size(0), y.size(1))),)


def make_inputs(
    T: int,
    H: int,
    topk: int,
    has_weights: bool = True,
    x_dtype: torch.dtype = torch.bfloat16,
    hostile: bool = True,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """A permutation. Hostile: a tenth of it is dropped, and the rows that nobody names hold NaN."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randn(T * topk, H, generator=g)
    inverse = torch.randperm(T * topk, generator=g).view(T, topk)
    is_dropped = torch.rand(T, topk, generator=g) < (0.1 if hostile else 0.0)
    y[inverse[is_dropped]] = float("nan")
    inverse[is_dropped] = -1
    weights = torch.rand(T, topk, generator=g).to(device) if has_weights else None
    return {"y": y.to(x_dtype).to(device), "topk_weights": weights, "inverse": inverse.int().to(device)}


def _setup_context(ctx, inputs, keyword_only_inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Products of each pair's gradient; pairs without a row go to one row more, which is cut off."""
    y, topk_weights, inverse = ctx.saved_tensors
    R = y.size(0)
    is_row = (inverse >= 0) & (inverse < R)  # [T, topk]
    grad_y = grad_weights = None
    if ctx.needs_input_grad[0]:
        pairs = grad[:, None].expand(-1, inverse.size(1), -1)  # [T, topk, H]
        if topk_weights is not None:
            pairs = (pairs.float() * topk_weights[..., None]).to(y.dtype)
        rows = torch.where(is_row, inverse, R).flatten()  # [T * topk]
        grad_y = y.new_zeros((R + 1, y.size(1))).index_add(0, rows, pairs.flatten(0, 1))[:R]
    if topk_weights is not None and ctx.needs_input_grad[1]:
        padded = torch.cat([y, y.new_zeros((1, y.size(1)))])  # [R + 1, H]
        named = padded[torch.where(is_row, inverse, R).long()]  # [T, topk, H]
        grad_weights = torch.einsum("th,tjh->tj", grad.float(), named.float())
    return grad_y, grad_weights, None


register(
    OpSpec(
        name=OP,
        schema="Tensor y, Tensor? topk_weights, Tensor inverse",
        outputs=("out",),
        dtype_arg=None,
        check=_check_args,
        empty=_empty,
        reference=reference,
        public=moe_unpermute,
        make_inputs=make_inputs,
        bound=exactly(reference),
        cases=(
            {"T": 0, "H": 128, "topk": 2},
            {"T": 1, "H": 1, "topk": 1},
            {"T": 5, "H": 576, "topk": 8},
            {"T": 33, "H": 200, "topk": 3, "has_weights": False},
            {"T": 7, "H": 37, "topk": 4, "x_dtype": torch.float16},
            {"T": 9, "H": 1030, "topk": 2, "x_dtype": torch.float32},
            {"T": 3, "H": 0, "topk": 2},
            {"T": 3, "H": 16, "topk": 0},
        ),
        flops=lambda T, H, topk, **_: 2 * T * H * topk,
        bytes=lambda T, H, topk, x_bytes=2, **_: T * (1 + topk) * H * x_bytes + T * topk * 8,
        batch_args=("topk_weights", "inverse"),
        autograd=Autograd(_setup_context, _backward),
    )
)  # fmt: skip
