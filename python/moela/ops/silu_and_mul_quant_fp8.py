"""The gated activation and the cast to FP8 that the down projection needs, in one pass."""

from typing import Any

import torch
from torch import Tensor

from moela.ops import _check
from moela.ops._spec import OpSpec, register
from moela.ops.silu_and_mul import check_swiglu, float32_error
from moela.ops.silu_and_mul import make_inputs as make_swiglu_inputs
from moela.reference import silu_and_mul_quant_fp8 as reference
from moela.reference.per_token_group_quant_fp8 import cast_e4m3, scale_factor

OP = "silu_and_mul_quant_fp8"


def silu_and_mul_quant_fp8(
    x: Tensor,
    *,
    limit: float | None = None,
    alpha: float | None = None,
    group_size: int = 128,
    ue8m0: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compute ``q, sf = per_token_group_quant_fp8(silu_and_mul(x))`` without rounding to x's dtype between.

    Args:
        x: [..., 2*K] bfloat16, float16 or float32, the gate's half first; last dimension contiguous, rows
            may be strided. May be empty.
        limit: positive; clamps as in `silu_and_mul`. None: nothing is clamped.
        alpha: positive, needs a limit; gpt-oss's kind as in `silu_and_mul`. None: plain silu.
        group_size: columns of the result that share a scale factor; need not divide K.
        ue8m0: round each sf up to a power of two.

    Returns:
        q: [..., K] float8_e4m3fn, contiguous.
        sf: [..., ceil(K/group_size)] float32, contiguous; multiplies to dequantize.

    Numerics: the cast is the one of `per_token_group_quant_fp8`, its input the float32 y of `silu_and_mul`,
        with the error given there: q and sf are what the cast gives for some float32 within that error. So
        a code differs from the definition's by one step where y / sf is that near to the middle of two
        codes, and a ue8m0 sf by a factor of two where the largest of a group is that near to 448 times a
        power of two; otherwise they are equal, and a float32 sf has the relative error of that largest y.
        A group whose y holds NaN or Inf has that as its sf, and dequantizes to NaN. The same bits for every
        instruction set of the CPU. A row depends on that row of x only.

    Source: DeepSeek-V3 technical report (arXiv 2412.19437), section 3.3 (1 x 128 tiles); activations as in
        `silu_and_mul`.
    """
    return torch.ops.moela.silu_and_mul_quant_fp8(
        x, limit=limit, alpha=alpha, group_size=group_size, ue8m0=ue8m0
    )


def silu_and_mul_quant_fp8_out(
    x: Tensor,
    *,
    limit: float | None = None,
    alpha: float | None = None,
    group_size: int = 128,
    ue8m0: bool = False,
    q: Tensor,
    sf: Tensor,
) -> None:
    """`silu_and_mul_quant_fp8` into `q` and `sf`, contiguous."""
    torch.ops.moela.silu_and_mul_quant_fp8_out(
        x, limit=limit, alpha=alpha, group_size=group_size, ue8m0=ue8m0, q=q, sf=sf
    )


def _check_args(x, limit=None, alpha=None, group_size=128, ue8m0=False) -> None:
    check_swiglu(OP, x, limit, alpha)
    _check.expect(group_size > 0, OP, "group_size", "a positive number", group_size)


def _empty(x, limit=None, alpha=None, group_size=128, ue8m0=False) -> tuple[Tensor, Tensor]:
    K = x.size(-1) // 2
    q = x.new_empty((*x.shape[:-1], K), dtype=torch.float8_e4m3fn)
    num_groups = (K + group_size - 1) // group_size
    return q, x.new_empty((*x.shape[:-1], num_groups), dtype=torch.float32)


def make_inputs(M: int, K: int, group_size: int = 128, ue8m0: bool = False, **dims: Any) -> dict[str, Any]:
    """Those of silu_and_mul."""
    return make_swiglu_inputs(M, K, **dims) | {"group_size": group_size, "ue8m0": ue8m0}


def _middle(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """An interval as (middle, half its length); exact in float64."""
    low, high = low.double(), high.double()
    return (low + high) / 2, torch.where(low == high, 0.0, (high - low) / 2)


def _bound(inputs: dict[str, Any], accum: float) -> list[tuple[Tensor, Tensor]]:
    """What the cast makes of the ends of the interval that y lies in.

    The largest of a group, its scale factor, the rounded quotient and the code never fall when y (or |y|)
    grows, and the quotient falls when sf grows; so float32 values inside give q and sf inside.
    """
    y, error = float32_error(inputs["x"], inputs["limit"], inputs["alpha"])
    ue8m0 = inputs["ue8m0"]
    K = y.size(-1)
    group_size = min(inputs["group_size"], max(K, 1))
    num_groups = -(-K // group_size)

    def grouped(t: Tensor) -> Tensor:
        t = torch.nn.functional.pad(t, (0, num_groups * group_size - K))
        return t.unflatten(-1, (num_groups, group_size))  # [M, num_groups, group_size]

    amax_low = grouped((y.abs() - error).float()).amax(-1).clamp(min=0)
    amax_high = grouped((y.abs() + error).float()).amax(-1)
    sf = scale_factor(amax_low, ue8m0), scale_factor(amax_high, ue8m0)  # [M, num_groups]
    quotients = [
        grouped(end.float()) / factor.unsqueeze(-1) for end in (y - error, y + error) for factor in sf
    ]
    every = torch.stack(quotients)
    codes = [
        cast_e4m3(end).flatten(-2)[..., :K]  # [M, K]
        for end in (every.amin(0), every.amax(0))
    ]
    return [_middle(*codes), _middle(*sf)]


register(
    OpSpec(
        name=OP,
        schema="Tensor x, *, float? limit=None, float? alpha=None, int group_size=128, bool ue8m0=False",
        outputs=("q", "sf"),
        dtype_arg=None,
        check=_check_args,
        empty=_empty,
        reference=reference,
        public=silu_and_mul_quant_fp8,
        make_inputs=make_inputs,
        bound=_bound,
        cases=(
            {"M": 0, "K": 128},
            {"M": 1, "K": 1},
            {"M": 3, "K": 200, "limit": 7.0},
            {"M": 5, "K": 576, "limit": 7.0, "alpha": 1.702, "group_size": 64},
            {"M": 17, "K": 384, "ue8m0": True, "x_dtype": torch.float16},
            {"M": 4, "K": 100, "group_size": 7, "ue8m0": True, "x_dtype": torch.float32},
            {"M": 2, "K": 1300, "group_size": 1200, "limit": 10.0, "alpha": 1.702},
            {"M": 2, "K": 2048},
        ),
        flops=lambda M, K, **_: 8 * M * K,
        bytes=lambda M, K, group_size=128, x_bytes=2, **_: (
            M * K * (2 * x_bytes + 1) + 4 * M * -(-K // group_size)
        ),
        batch_args=("x",),
        to_train="to train, use silu_and_mul",
    )
)
