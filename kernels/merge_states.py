"""Triton backend of ``merge_states``.

Products and their sum are rounded separately, so that a and b may change places without changing a bit: it
is compiled without fused multiply-adds.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from moela.kernels import _fp8
from torch import Tensor


@dataclass(frozen=True)
class Plan:
    BLOCK_M: int  # rows of one program
    BLOCK_D: int  # columns of one program
    num_warps: int


def plan(D: int, interpreted: bool) -> Plan:
    """Whole rows where they fit. The interpreter's time is programs, so it gets many rows in each."""
    block_d = min(triton.next_power_of_2(max(D, 1)), 1024)
    block_m = max(1, (32768 if interpreted else 2048) // block_d)
    return Plan(BLOCK_M=block_m, BLOCK_D=block_d, num_warps=4)


@triton.jit
def _merge_states_kernel(
    out_a_ptr, lse_a_ptr, out_b_ptr, lse_b_ptr, out_ptr, lse_ptr,
    M, D, stride_am, stride_bm,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One program owns one [BLOCK_M, BLOCK_D] tile of out; that of the first columns writes lse too.

    Grid: (cdiv(M, BLOCK_M), max(1, cdiv(D, BLOCK_D))). Invariant: a row of a state without keys is not
    loaded.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]  # [BLOCK_M, 1]
    col = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]  # [1, BLOCK_D]
    lse_a = tl.load(lse_a_ptr + row, mask=row < M, other=0.0)
    lse_b = tl.load(lse_b_ptr + row, mask=row < M, other=0.0)
    has_a, has_b = lse_a != float("-inf"), lse_b != float("-inf")
    # NaN fails both comparisons, and -Inf - -Inf is not asked for.
    is_wrong = ((lse_a < float("inf")) & (lse_b < float("inf"))) == 0
    top = tl.where(lse_a > lse_b, lse_a, lse_b)
    least = tl.where(lse_a > lse_b, lse_b, lse_a)
    e = tl.where(has_a & has_b, tl.exp(least - tl.where(has_a & has_b, top, 0.0)), 0.0)
    larger, smaller = tl.div_rn(1.0, 1.0 + e), tl.div_rn(e, 1.0 + e)
    weight_a, weight_b = tl.where(lse_a > lse_b, larger, smaller), tl.where(lse_a > lse_b, smaller, larger)
    mask = (row < M) & (col < D)
    a = tl.load(out_a_ptr + row * stride_am + col, mask=mask & has_a, other=0.0)
    b = tl.load(out_b_ptr + row * stride_bm + col, mask=mask & has_b, other=0.0)
    # A state without keys is left out of the sum: -0 + 0 is 0.
    a, b = _fp8.to_float32(a, INTERPRETED) * weight_a, _fp8.to_float32(b, INTERPRETED) * weight_b
    out = tl.where(has_a, tl.where(has_b, a + b, a), b)
    out = tl.where(is_wrong, float("nan"), tl.where(has_a | has_b, out, 0.0))
    tl.store(out_ptr + row * D + col, _fp8.round_to(out, out_ptr.dtype.element_ty, INTERPRETED), mask=mask)
    lse = tl.where(is_wrong, float("nan"), tl.where(has_a & has_b, top + tl.log(1.0 + e), top))
    if tl.program_id(1) == 0:
        tl.store(lse_ptr + row, lse, mask=row < M)


def launch(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor, *, out: tuple[Tensor, Tensor]) -> None:
    result, lse = out
    M, D = lse.numel(), result.size(-1)
    if M == 0:
        return
    # [M, D], [M]: views unless no common stride leads
    a, b = (t.reshape(M, D) for t in (out_a, out_b))
    interpreted = _fp8.target_of(out_a.device).interpreted
    p = plan(D, interpreted)
    _merge_states_kernel[(triton.cdiv(M, p.BLOCK_M), max(1, triton.cdiv(D, p.BLOCK_D)))](
        a, lse_a.reshape(M).contiguous(), b, lse_b.reshape(M).contiguous(), result, lse,
        M, D, a.stride(0), b.stride(0),
        BLOCK_M=p.BLOCK_M, BLOCK_D=p.BLOCK_D, INTERPRETED=interpreted, num_warps=p.num_warps,
        enable_fp_fusion=False,
    )  # fmt: skip
