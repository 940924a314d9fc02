"""Triton backend of ``silu_and_mul_quant_fp8``."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from moela.kernels import _fp8, _swiglu
from torch import Tensor


@dataclass(frozen=True)
class Plan:
    BLOCK_M: int  # groups of one program
    BLOCK_G: int  # columns of one step through a group
    num_warps: int


def plan(group_size: int, interpreted: bool) -> Plan:
    """Whole groups where they fit. The interpreter's time is programs, not bytes, so it gets large ones."""
    block_g = min(triton.next_power_of_2(group_size), 1024)
    block_m = max(1, (32768 if interpreted else 2048) // block_g)
    return Plan(BLOCK_M=block_m, BLOCK_G=block_g, num_warps=4)


@triton.jit
def _silu_and_mul_quant_fp8_kernel(
    x_ptr, q_ptr, sf_ptr,
    num_groups, groups_per_row, K, group_size, limit, alpha, shift, stride_xm,
    BLOCK_M: tl.constexpr, BLOCK_G: tl.constexpr, IS_WHOLE: tl.constexpr, UE8M0: tl.constexpr,
    NATIVE: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_M groups of q and sf; a group longer than BLOCK_G it computes twice, in steps.

    Grid: cdiv(num_groups, BLOCK_M). Group g is columns [g % groups_per_row * group_size, ...) of row g /
    groups_per_row. Invariant: a column at or beyond K, or beyond its group, is masked in every load and
    store; IS_WHOLE says that a group is one step.
    """
    group = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    row, start = group // groups_per_row, (group % groups_per_row) * group_size
    stop = tl.minimum(start + group_size, K)
    live = group < num_groups
    gate_ptr, code_ptr = x_ptr + row[:, None] * stride_xm, q_ptr + row[:, None] * K

    col = start[:, None] + tl.arange(0, BLOCK_G)[None, :]  # [BLOCK_M, BLOCK_G]
    mask = live[:, None] & (col < stop[:, None])
    y = _swiglu.swiglu(gate_ptr + col, K, mask, limit, alpha, shift, INTERPRETED)
    amax = tl.max(_fp8.magnitude_bits(y), axis=1)
    if not IS_WHOLE:
        for step in range(BLOCK_G, group_size, BLOCK_G):
            later = live[:, None] & (col + step < stop[:, None])
            y = _swiglu.swiglu(gate_ptr + col + step, K, later, limit, alpha, shift, INTERPRETED)
            amax = tl.maximum(amax, tl.max(_fp8.magnitude_bits(y), axis=1))
    sf = _fp8.scale_factor(amax, UE8M0)
    tl.store(sf_ptr + group, sf, mask=live)
    if IS_WHOLE:
        codes = _fp8.encode_e4m3(tl.div_rn(y, sf[:, None] + tl.zeros_like(y)), NATIVE)
        tl.store(code_ptr + col, codes, mask=mask)
    else:
        for step in range(0, group_size, BLOCK_G):
            later = live[:, None] & (col + step < stop[:, None])
            y = _swiglu.swiglu(gate_ptr + col + step, K, later, limit, alpha, shift, INTERPRETED)
            codes = _fp8.encode_e4m3(tl.div_rn(y, sf[:, None] + tl.zeros_like(y)), NATIVE)
            tl.store(code_ptr + col + step, codes, mask=later)


def launch(
    x: Tensor,
    limit: float | None = None,
    alpha: float | None = None,
    group_size: int = 128,
    ue8m0: bool = False,
    *,
    out: tuple[Tensor, Tensor],
) -> None:
    q, sf = out
    if sf.numel() == 0:
        return
    K = q.size(-1)
    group_size = min(group_size, K)
    rows = x.reshape(
        -1, 2 * K
    )  # [num_rows, 2 * K]; a view unless the leading dimensions have no common stride
    target = _fp8.target_of(x.device)
    p = plan(group_size, target.interpreted)
    _silu_and_mul_quant_fp8_kernel[(triton.cdiv(sf.numel(), p.BLOCK_M),)](
        rows, q.view(torch.uint8), sf,
        sf.numel(), sf.size(-1), K, group_size, *_swiglu.numbers(limit, alpha), rows.stride(0),
        BLOCK_M=p.BLOCK_M, BLOCK_G=p.BLOCK_G, IS_WHOLE=group_size <= p.BLOCK_G, UE8M0=ue8m0,
        NATIVE=target.fp8, INTERPRETED=target.interpreted, num_warps=p.num_warps,
    )  # fmt: skip
