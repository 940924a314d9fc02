"""Triton backend of ``moe_unpermute``.

Products and sums are rounded separately, as the definition says, so it is compiled without fused
multiply-adds.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from moela.kernels import _fp8
from torch import Tensor


@dataclass(frozen=True)
class Plan:
    BLOCK_T: int  # tokens of one program
    BLOCK_H: int  # columns of one program
    num_warps: int


def plan(H: int, interpreted: bool) -> Plan:
    """A piece of one token. The interpreter's time is programs, so it gets many tokens in each."""
    block_h = min(triton.next_power_of_2(H), 1024)
    return Plan(BLOCK_T=16 if interpreted else max(1, 1024 // block_h), BLOCK_H=block_h, num_warps=4)


@triton.jit
def _moe_unpermute_kernel(
    y_ptr, weights_ptr, inverse_ptr, out_ptr,
    T, R, H, topk, stride_yr, stride_wt, stride_it,
    HAS_WEIGHTS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One program owns one [BLOCK_T, BLOCK_H] tile of out, and adds slot after slot.

    Grid: (cdiv(T, BLOCK_T), cdiv(H, BLOCK_H)). Invariant: a row outside of y is not read, and leaves the sum
    as it is.
    """
    token = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)[:, None]  # [BLOCK_T, 1]
    col = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)[None, :]  # [1, BLOCK_H]
    total = tl.zeros([BLOCK_T, BLOCK_H], dtype=tl.float32)
    for slot in range(topk):
        row = tl.load(inverse_ptr + token * stride_it + slot, mask=token < T, other=-1).to(tl.int64)
        is_row = (row >= 0) & (row < R)  # [BLOCK_T, 1]
        y = tl.load(y_ptr + row * stride_yr + col, mask=is_row & (col < H), other=0.0)
        term = _fp8.to_float32(y, INTERPRETED)
        if HAS_WEIGHTS:
            term *= tl.load(weights_ptr + token * stride_wt + slot, mask=token < T, other=0.0)
        total = tl.where(is_row, total + term, total)
    out = _fp8.round_to(total, out_ptr.dtype.element_ty, INTERPRETED)
    tl.store(out_ptr + token * H + col, out, mask=(token < T) & (col < H))


def launch(y: Tensor, topk_weights: Tensor | None, inverse: Tensor, *, out: tuple[Tensor]) -> None:
    (result,) = out
    if result.numel() == 0:
        return
    (T, topk), (R, H) = inverse.shape, y.shape
    interpreted = _fp8.target_of(y.device).interpreted
    p = plan(H, interpreted)
    weights = y if topk_weights is None else topk_weights
    _moe_unpermute_kernel[(triton.cdiv(T, p.BLOCK_T), triton.cdiv(H, p.BLOCK_H))](
        y, weights, inverse, result,
        T, R, H, topk, y.stride(0), weights.stride(0), inverse.stride(0),
        HAS_WEIGHTS=topk_weights is not None, BLOCK_T=p.BLOCK_T, BLOCK_H=p.BLOCK_H,
        INTERPRETED=interpreted, num_warps=p.num_warps, enable_fp_fusion=False,
    )  # fmt: skip
