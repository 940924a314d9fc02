"""The gated activation between the two products of an expert: SwiGLU and its clamped kinds."""

from typing import Any

import torch
from torch import Tensor

from moela.ops import _check
from moela.ops._spec import Autograd, OpSpec, register, rounding
from moela.reference import silu_and_mul as reference
from moela.reference.silu_and_mul import gate_and_up, swiglu

OP = "silu_and_mul"


def silu_and_mul(x: Tensor, *, limit: float | None = None, alpha: float | None = None) -> Tensor:
    """Compute ``y = silu(gate) * up`` of the two halves of x; with limit and alpha its clamped kinds.

    gate, up = x[..., :K], x[..., K:]
    with limit: gate = min(gate, limit); up = min(max(up, -limit), limit)
    without alpha: y = gate * sigmoid(gate) * up
    with alpha: y = gate * sigmoid(alpha * gate) * (up + 1)

    Args:
        x: [..., 2*K] bfloat16, float16 or float32, the gate's half first; last dimension contiguous, rows
            may be strided. May be empty.
        limit: positive; None: nothing is clamped.
        alpha: positive, needs a limit; None: plain silu.

    Returns:
        [..., K] of x's dtype, contiguous. Differentiable; what a limit cuts off gets no gradient.

    Numerics: float32, rounded once. With z = alpha * gate (gate without alpha) and v what it multiplies
        (up, or up + 1), before that rounding
        |error| <= 2^-24 (12 + 4 |z| sigmoid(-z)) |y| + 2^-126 (|gate| + 1) (|v| + 1).
        NaN gives NaN, as does a gate of -Inf; where the sigmoid is below 2^-126, an infinite up may too.
        The same bits for every instruction set of the CPU. A row of y depends on that row of x only.

    Source: SwiGLU, arXiv 2002.05202, in the experts of DeepSeek-V3 (modeling_deepseek.py, DeepseekV3MLP);
        limit 7 and alpha 1.702: openai/gpt-oss, gpt_oss/torch/model.py, swiglu, whose gate and up alternate
        where ours are halves.
    """
    return torch.ops.moela.silu_and_mul(x, limit=limit, alpha=alpha)


def silu_and_mul_out(x: Tensor, *, limit: float | None = None, alpha: float | None = None, y: Tensor) -> None:
    """`silu_and_mul` into `y`, contiguous."""
    torch.ops.moela.silu_and_mul_out(x, limit=limit, alpha=alpha, y=y)


def check_swiglu(op: str, x: Tensor, limit: float | None, alpha: float | None) -> None:
    """The arguments that both ops have."""
    _check.expect_min_dim(op, "x", x, 1)
    _check.expect_dtype(op, "x", x.dtype, _check.FLOAT_DTYPES)
    _check.expect_last_dim_contiguous(op, "x", x)
    _check.expect(x.size(-1) % 2 == 0, op, "x", "an even last dimension", x.size(-1))
    check_limits(op, limit, alpha)


def check_limits(op: str, limit: float | None, alpha: float | None) -> None:
    if limit is not None:
        _check.expect(limit > 0, op, "limit", "a positive number", f"{limit:g}")
    if alpha is not None:
        _check.expect(limit is not None, op, "alpha", "None because limit is None", f"{alpha:g}")
        _check.expect(alpha > 0, op, "alpha", "a positive number", f"{alpha:g}")


def _check_args(x, limit=None, alpha=None) -> None:
    check_swiglu(OP, x, limit, alpha)


def _empty(x, limit=None, alpha=None) -> tuple[Tensor]:
    return (x.new_empty((*x.shape[:-1], x.size(-1) // 2)),)


def make_inputs(
    M: int,
    K: int,
    limit: float | None = None,
    alpha: float | None = None,
    x_dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Rows of very different size; K columns of y, which the down projection sums over."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(M, 2 * K, generator=g) * torch.exp2(torch.randint(-8, 5, (M, 1), generator=g).float())
    return {"x": x.to(x_dtype).to(device), "limit": limit, "alpha": alpha}


def float32_error(x: Tensor, limit: float | None, alpha: float | None) -> tuple[Tensor, Tensor]:
    """(y, what float32 arithmetic may be off by), in float64.

    In units of 2^-24 of y: the exponential 4 (ex2.approx has 2^-22; the CPU's polynomial less), the quotient
    4 where it is not the IEEE one, 1 + e, the product and up + 1 one each: 11, and 12 with the products of
    these. The exponential's argument z log2(e) has two roundings, alpha * gate two more: 4 |z|. What changes
    e changes the sigmoid by e / (1 + e) = sigmoid(-z) of that. Where e overflows or the quotient is
    subnormal, all of a sigmoid below 2^-126, or of a quotient or y below 2^-126, may be lost.
    """
    y = swiglu(x, limit, alpha)
    gate, up = gate_and_up(x, limit)
    z, factor = (gate, up) if alpha is None else (alpha * gate, up + 1)
    units = 12 + 4 * z.abs() * torch.sigmoid(-z)
    error = 2.0**-24 * units * y.abs() + 2.0**-126 * (gate.abs() + 1) * (factor.abs() + 1)
    return y, torch.where(y.isfinite(), error, 0.0)


def _bound(inputs: dict[str, Any], accum: float) -> list[tuple[Tensor, Tensor]]:
    y, error = float32_error(**inputs)
    return [(y, error + rounding(y.abs() + error, inputs["x"].dtype))]


def _setup_context(ctx, inputs, keyword_only_inputs, output) -> None:
    ctx.save_for_backward(*inputs)
    ctx.limit, ctx.alpha = keyword_only_inputs["limit"], keyword_only_inputs["alpha"]


def _backward(ctx, grad: Tensor) -> tuple[Tensor]:
    """Float32, rounded once. A limit passes the gradient of values up to and including it, as clamp does."""
    (x,) = ctx.saved_tensors
    gate, up = x.float().chunk(2, -1)  # [..., K] each
    is_cut = None
    if ctx.limit is not None:
        is_cut = torch.cat([gate > ctx.limit, up.abs() > ctx.limit], -1)
        gate, up = gate.clamp(max=ctx.limit), up.clamp(-ctx.limit, ctx.limit)
    z, factor = (gate, up) if ctx.alpha is None else (ctx.alpha * gate, up + 1)
    s = torch.sigmoid(z)
    grad = grad.float()
    grad_gate = grad * factor * s * (1 + z * (1 - s))
    grad_up = grad * gate * s
    grad_x = torch.cat([grad_gate, grad_up], -1)
    return ((grad_x if is_cut is None else grad_x.masked_fill(is_cut, 0)).to(x.dtype),)


register(
    OpSpec(
        name=OP,
        schema="Tensor x, *, float? limit=None, float? alpha=None",
        outputs=("y",),
        dtype_arg=None,
        check=_check_args,
        empty=_empty,
        reference=reference,
        public=silu_and_mul,
        make_inputs=make_inputs,
        bound=_bound,
        cases=(
            {"M": 0, "K": 128},
            {"M": 1, "K": 1},
            {"M": 3, "K": 200, "limit": 7.0},
            {"M": 5, "K": 576, "limit": 7.0, "alpha": 1.702},
            {"M": 4, "K": 100, "limit": 0.3, "alpha": 0.7, "x_dtype": torch.float16},
            {"M": 17, "K": 384, "x_dtype": torch.float32},
            {"M": 9, "K": 37, "limit": 10.0, "alpha": 1.702, "x_dtype": torch.float32},
            {"M": 2, "K": 2048},
        ),
        flops=lambda M, K, **_: 5 * M * K,
        bytes=lambda M, K, x_bytes=2, **_: 3 * x_bytes * M * K,
        batch_args=("x",),
        autograd=Autograd(_setup_context, _backward),
    )
)
