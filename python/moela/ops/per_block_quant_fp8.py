"""Cast weights to FP8 with one scale factor per 128 x 128 block."""

from typing import Any

import torch
from torch import Tensor

from moela.ops import _check
from moela.ops._spec import OpSpec, exactly, register
from moela.reference import per_block_quant_fp8 as reference
from moela.reference.per_block_quant_fp8 import BLOCK

OP = "per_block_quant_fp8"


def per_block_quant_fp8(w: Tensor, ue8m0: bool = False) -> tuple[Tensor, Tensor]:
    """Compute ``sf = max(amax(|w|) / 448, 2^-126)`` per 128 x 128 block, ``q = e4m3(w / sf)``.

    Args:
        w: [..., N, K] bfloat16, float16 or float32, K contiguous, rows may be strided. Any N and K: the
        blocks
            at the edges are smaller. Leading dimensions (experts) are quantized one by one.
        ue8m0: round each sf up to a power of two.

    Returns:
        q: [..., N, K] float8_e4m3fn, contiguous.
        sf: [..., ceil(N/128), ceil(K/128)] float32, contiguous; a checkpoint's `weight_scale_inv`.

    Numerics: as per_token_group_quant_fp8, the same bits on every backend.

    Source: DeepSeek-V3 technical report (arXiv 2412.19437), section 3.3 (128 x 128 blocks for weights).
    """
    return torch.ops.moela.per_block_quant_fp8(w, ue8m0)


def per_block_quant_fp8_out(w: Tensor, ue8m0: bool = False, *, q: Tensor, sf: Tensor) -> None:
    """`per_block_quant_fp8` into `q` and `sf`, contiguous."""
    torch.ops.moela.per_block_quant_fp8_out(w, ue8m0, q=q, sf=sf)


def _check_args(w, ue8m0=False) -> None:
    _check.expect_min_dim(OP, "w", w, 2)
    _check.expect_dtype(OP, "w", w.dtype, _check.FLOAT_DTYPES)
    _check.expect_last_dim_contiguous(OP, "w", w)


def _empty(w, ue8m0=False) -> tuple[Tensor, Tensor]:
    N, K = w.shape[-2:]
    grid = ((N + BLOCK - 1) // BLOCK, (K + BLOCK - 1) // BLOCK)
    q = w.new_empty(w.shape, dtype=torch.float8_e4m3fn)
    return q, w.new_empty((*w.shape[:-2], *grid), dtype=torch.float32)


def make_inputs(
    N: int,
    K: int,
    num_experts: int | None = None,
    ue8m0: bool = False,
    w_dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Normal weights; [N, K], or [num_experts, N, K]."""
    g = torch.Generator().manual_seed(seed)
    shape = (N, K) if num_experts is None else (num_experts, N, K)
    return {"w": (torch.randn(shape, generator=g) * 0.02).to(w_dtype).to(device), "ue8m0": ue8m0}


register(
    OpSpec(
        name=OP,
        schema="Tensor w, bool ue8m0=False",
        outputs=("q", "sf"),
        dtype_arg=None,
        check=_check_args,
        empty=_empty,
        reference=reference,
        public=per_block_quant_fp8,
        make_inputs=make_inputs,
        bound=exactly(reference),
        cases=(
            {"N": 0, "K": 128},
            {"N": 1, "K": 1},
            {"N": 128, "K": 128},
            {"N": 129, "K": 127, "w_dtype": torch.float32},
            {"N": 200, "K": 384, "ue8m0": True, "w_dtype": torch.float16},
            {"N": 130, "K": 100, "num_experts": 3},
        ),
        flops=lambda N, K, **_: 3 * N * K,
        bytes=lambda N, K, w_bytes=2, **_: N * K * (w_bytes + 1) + 4 * -(-N // BLOCK) * -(-K // BLOCK),
    )
)
