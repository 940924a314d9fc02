"""Expand FP8 weights with 128 x 128 scales to a float type."""

from typing import Any

import torch
from torch import Tensor

from moela.ops import _check
from moela.ops._spec import OpSpec, exactly, register
from moela.ops.fp8_gemm import SF_DTYPES
from moela.reference import per_block_dequant_fp8 as reference
from moela.reference.per_block_dequant_fp8 import BLOCK

OP = "per_block_dequant_fp8"


def per_block_dequant_fp8(q: Tensor, sf: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Compute ``w = q * sf``, each sf for a 128 x 128 block.

    Args:
        q: [..., N, K] float8_e4m3fn, K contiguous, rows may be strided. Any N and K.
        sf: [..., ceil(N/128), ceil(K/128)] float32, bfloat16 or float8_e8m0fnu, any strides.
        dtype: bfloat16, float16 or float32.

    Returns:
        w: [..., N, K] of `dtype`, contiguous.

    Numerics: one float32 product, then one rounding to `dtype`: the same bits on every backend. NaN codes
    stay NaN.

    Source: DeepSeek-V3 technical report (arXiv 2412.19437), section 3.3.
    """
    return torch.ops.moela.per_block_dequant_fp8(q, sf, dtype)


def per_block_dequant_fp8_out(q: Tensor, sf: Tensor, *, w: Tensor) -> None:
    """`per_block_dequant_fp8` into `w`: contiguous bfloat16, float16 or float32."""
    torch.ops.moela.per_block_dequant_fp8_out(q, sf, w=w)


def _check_args(q, sf, dtype=torch.bfloat16) -> None:
    _check.expect_min_dim(OP, "q", q, 2)
    _check.expect_dtype(OP, "q", q.dtype, (torch.float8_e4m3fn,))
    _check.expect_last_dim_contiguous(OP, "q", q)
    N, K = q.shape[-2:]
    _check.expect_dtype(OP, "sf", sf.dtype, SF_DTYPES)
    _check.expect_shape(OP, "sf", sf, (*q.shape[:-2], (N + BLOCK - 1) // BLOCK, (K + BLOCK - 1) // BLOCK))
    _check.expect_device(OP, "sf", sf, q.device, "q")
    _check.expect_dtype(OP, "dtype", dtype, _check.FLOAT_DTYPES)


def _empty(q, sf, dtype=torch.bfloat16) -> tuple[Tensor]:
    return (q.new_empty(q.shape, dtype=dtype),)


def make_inputs(
    N: int,
    K: int,
    num_experts: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    sf_dtype: torch.dtype = torch.float32,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Every e4m3 code but the two NaNs, equally often; [N, K], or [num_experts, N, K]."""
    g = torch.Generator().manual_seed(seed)
    lead = () if num_experts is None else (num_experts,)
    codes = torch.randint(0, 254, (*lead, N, K), generator=g, dtype=torch.uint8)
    codes += codes >= 127  # skips 127; 255 is out of reach
    sf = torch.rand(*lead, -(-N // BLOCK), -(-K // BLOCK), generator=g) * 2.0**-10 + 2.0**-12
    return {"q": codes.view(torch.float8_e4m3fn).to(device), "sf": sf.to(sf_dtype).to(device), "dtype": dtype}


register(
    OpSpec(
        name=OP,
        schema="Tensor q, Tensor sf, ScalarType dtype=15",
        outputs=("w",),
        dtype_arg="dtype",
        check=_check_args,
        empty=_empty,
        reference=reference,
        public=per_block_dequant_fp8,
        make_inputs=make_inputs,
        bound=exactly(reference),
        cases=(
            {"N": 0, "K": 128},
            {"N": 1, "K": 1},
            {"N": 128, "K": 256},
            {"N": 129, "K": 127, "dtype": torch.float32, "sf_dtype": torch.bfloat16},
            {"N": 200, "K": 385, "dtype": torch.float16, "sf_dtype": torch.float8_e8m0fnu},
            {"N": 130, "K": 100, "num_experts": 3},
        ),
        flops=lambda N, K, **_: N * K,
        bytes=lambda N, K, w_bytes=2, **_: N * K * (w_bytes + 1) + 4 * -(-N // BLOCK) * -(-K // BLOCK),
    )
)
