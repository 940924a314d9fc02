"""Cast activations to FP8 with one scale factor per token and group of columns."""

from typing import Any

import torch
from torch import Tensor

from moela.ops import _check
from moela.ops._spec import OpSpec, exactly, register
from moela.reference import per_token_group_quant_fp8 as reference

OP = "per_token_group_quant_fp8"


def per_token_group_quant_fp8(x: Tensor, group_size: int = 128, ue8m0: bool = False) -> tuple[Tensor, Tensor]:
    """Compute ``sf = max(amax(|x|) / 448, 2^-126)`` per row and group, ``q = e4m3(x / sf)``.

    Args:
        x: [..., K] bfloat16, float16 or float32, K contiguous, rows may be strided. May be empty.
        group_size: columns that share a scale factor; need not divide K.
        ue8m0: round each sf up to a power of two.

    Returns:
        q: [..., K] float8_e4m3fn, contiguous.
        sf: [..., ceil(K/group_size)] float32, contiguous; multiplies to dequantize.

    Numerics: float32 division, rounded to nearest even and clamped to +-448: the same bits on every backend,
        NaN aside.
        |q * sf - x| <= 2^-4 |x| + 2^-10 sf (e4m3 keeps 3 fraction bits and has 2^-9 as its smallest value).
        A group that holds NaN or Inf has that as its sf, and dequantizes to NaN.

    Source: DeepSeek-V3 technical report (arXiv 2412.19437), section 3.3 (1 x 128 tiles for activations).
    """
    return torch.ops.moela.per_token_group_quant_fp8(x, group_size, ue8m0)


def per_token_group_quant_fp8_out(
    x: Tensor, group_size: int = 128, ue8m0: bool = False, *, q: Tensor, sf: Tensor
) -> None:
    """`per_token_group_quant_fp8` into `q` and `sf`, contiguous."""
    torch.ops.moela.per_token_group_quant_fp8_out(x, group_size, ue8m0, q=q, sf=sf)


def _check_args(x, group_size=128, ue8m0=False) -> None:
    _check.expect_min_dim(OP, "x", x, 1)
    _check.expect_dtype(OP, "x", x.dtype, _check.FLOAT_DTYPES)
    _check.expect_last_dim_contiguous(OP, "x", x)
    _check.expect(group_size > 0, OP, "group_size", "a positive number", group_size)


def _empty(x, group_size=128, ue8m0=False) -> tuple[Tensor, Tensor]:
    num_groups = (x.size(-1) + group_size - 1) // group_size
    q = x.new_empty(x.shape, dtype=torch.float8_e4m3fn)
    return q, x.new_empty((*x.shape[:-1], num_groups), dtype=torch.float32)


def make_inputs(
    M: int,
    K: int,
    group_size: int = 128,
    ue8m0: bool = False,
    x_dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Rows of very different size, as tokens are."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(M, K, generator=g) * torch.exp2(torch.randint(-8, 8, (M, 1), generator=g).float())
    return {"x": x.to(x_dtype).to(device), "group_size": group_size, "ue8m0": ue8m0}


register(
    OpSpec(
        name=OP,
        schema="Tensor x, int group_size=128, bool ue8m0=False",
        outputs=("q", "sf"),
        dtype_arg=None,
        check=_check_args,
        empty=_empty,
        reference=reference,
        public=per_token_group_quant_fp8,
        make_inputs=make_inputs,
        bound=exactly(reference),
        cases=(
            {"M": 0, "K": 128},
            {"M": 1, "K": 1},
            {"M": 3, "K": 200},
            {"M": 5, "K": 576, "group_size": 64, "x_dtype": torch.float32},
            {"M": 17, "K": 384, "ue8m0": True, "x_dtype": torch.float16},
            {"M": 4, "K": 100, "group_size": 7, "ue8m0": True},
            {"M": 2, "K": 7168},
        ),
        flops=lambda M, K, **_: 3 * M * K,
        bytes=lambda M, K, group_size=128, x_bytes=2, **_: (
            M * K * (x_bytes + 1) + 4 * M * -(-K // group_size)
        ),
        batch_args=("x",),
    )
)
