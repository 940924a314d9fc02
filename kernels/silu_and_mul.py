"""Triton backend of ``silu_and_mul``."""

from dataclasses import dataclass

import triton
import triton.language as tl
from moela.kernels import _fp8, _swiglu
from torch import Tensor


@dataclass(frozen=True)
class Plan:
    BLOCK: int  # elements of y of one program
    num_warps: int


def plan(interpreted: bool) -> Plan:
    """The interpreter's time is programs, not bytes, so it gets large ones."""
    return Plan(BLOCK=32768 if interpreted else 2048, num_warps=4)


@triton.jit
def _silu_and_mul_kernel(
    x_ptr, y_ptr,
    num_elements, K, limit, alpha, shift, stride_xm,
    BLOCK: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK elements of y, which is contiguous.

    Grid: cdiv(num_elements, BLOCK). Invariant: element i of y is that of row i / K, so every element that is
    loaded lies in a row of x.
    """
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = element < num_elements
    gate_ptr = x_ptr + element // K * stride_xm + element % K
    y = _swiglu.swiglu(gate_ptr, K, mask, limit, alpha, shift, INTERPRETED)
    tl.store(y_ptr + element, _fp8.round_to(y, y_ptr.dtype.element_ty, INTERPRETED), mask=mask)


def launch(x: Tensor, limit: float | None = None, alpha: float | None = None, *, out: tuple[Tensor]) -> None:
    (y,) = out
    if y.numel() == 0:
        return
    rows = x.reshape(-1, x.size(-1))  # [num_rows, 2 * K]; a view unless no common stride leads
    interpreted = _fp8.target_of(x.device).interpreted
    p = plan(interpreted)
    _silu_and_mul_kernel[(triton.cdiv(y.numel(), p.BLOCK),)](
        rows, y,
        y.numel(), y.size(-1), *_swiglu.numbers(limit, alpha), rows.stride(0),
        BLOCK=p.BLOCK, INTERPRETED=interpreted, num_warps=p.num_warps,
    )  # fmt: skip
