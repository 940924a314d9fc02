"""Triton backend of ``silu_and_mul``."""

from dataclasses import dataclass

import triton
import triton.language as tl
from moela.kernels import _fp8, _swiglu
from torch import Tensor


@dataclass(frozen=True)
class Plan:
    BLOCK_M: int  # rows of one program
    BLOCK_K: int  # columns of one program
    num_warps: int


def plan(K: int, interpreted: bool) -> Plan:
    """Whole rows where they fit. The interpreter's time is programs, not bytes, so it gets large ones."""
    block_k = min(triton.next_power_of_2(K), 1024)
    block_m = max(1, (32768 if interpreted else 2048) // block_k)
    return Plan(BLOCK_M=block_m, BLOCK_K=block_k, num_warps=4)


@triton.jit
def _silu_and_mul_kernel(
    x_ptr, y_ptr,
    M, K, limit, alpha, shift, stride_xm,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One program owns one [BLOCK_M, BLOCK_K] tile of y, which is contiguous.

    Grid: (cdiv(M, BLOCK_M), cdiv(K, BLOCK_K)). Invariant: a row at or beyond M and a column at or beyond K
    are masked in every load and store.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    col = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    mask = (row < M) & (col < K)  # [BLOCK_M, BLOCK_K]
    y = _swiglu.swiglu(x_ptr + row * stride_xm + col, K, mask, limit, alpha, shift, INTERPRETED)
    tl.store(y_ptr + row * K + col, _fp8.round_to(y, y_ptr.dtype.element_ty, INTERPRETED), mask=mask)


def launch(x: Tensor, limit: float | None = None, alpha: float | None = None, *, out: tuple[Tensor]) -> None:
    (y,) = out
    if y.numel() == 0:
        return
    K = y.size(-1)
    rows = x.reshape(-1, 2 * K)  # [num_rows, 2 * K]; a view unless no common stride leads
    M, interpreted = rows.size(0), _fp8.target_of(x.device).interpreted
    p = plan(K, interpreted)
    _silu_and_mul_kernel[(triton.cdiv(M, p.BLOCK_M), triton.cdiv(K, p.BLOCK_K))](
        rows, y,
        M, K, *_swiglu.numbers(limit, alpha), rows.stride(0),
        BLOCK_M=p.BLOCK_M, BLOCK_K=p.BLOCK_K, INTERPRETED=interpreted, num_warps=p.num_warps,
    )  # fmt: skip
