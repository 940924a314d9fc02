"""Triton backend of ``per_token_group_quant_fp8``."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from moela.kernels import _fp8
from torch import Tensor


@dataclass(frozen=True)
class Plan:
    BLOCK_M: int  # groups of one program
    BLOCK_G: int  # columns of one step through a group
    num_warps: int


def plan(group_size: int, interpreted: bool) -> Plan:
    """Whole groups where they fit. The interpreter's time is programs, not bytes, so it gets large ones."""
    block_g = min(triton.next_power_of_2(group_size), 1024)
    block_m = max(1, (32768 if interpreted else 4096) // block_g)
    return Plan(BLOCK_M=block_m, BLOCK_G=block_g, num_warps=4)


@triton.jit
def _per_token_group_quant_fp8_kernel(
    x_ptr, q_ptr, sf_ptr,
    num_groups, groups_per_row, K, group_size, stride_xm,
    BLOCK_M: tl.constexpr, BLOCK_G: tl.constexpr, UE8M0: tl.constexpr, NATIVE: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_M groups of q and sf and walks each in steps of BLOCK_G columns, twice.

    Grid: cdiv(num_groups, BLOCK_M). Group g is columns [g % groups_per_row * group_size, ...) of row g /
    groups_per_row. Invariant: a column at or beyond K, or beyond its group, is masked in every load and
    store.
    """
    group = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    row, start = group // groups_per_row, (group % groups_per_row) * group_size
    stop = tl.minimum(start + group_size, K)
    live = group < num_groups

    amax = tl.zeros((BLOCK_M,), tl.int32)
    for step in range(0, group_size, BLOCK_G):
        col = start[:, None] + step + tl.arange(0, BLOCK_G)[None, :]  # [BLOCK_M, BLOCK_G]
        mask = live[:, None] & (col < stop[:, None])
        x = _fp8.to_float32(
            tl.load(x_ptr + row[:, None] * stride_xm + col, mask=mask, other=0.0), INTERPRETED
        )
        amax = tl.maximum(amax, tl.max(_fp8.magnitude_bits(x), axis=1))
    sf = _fp8.scale_factor(amax, UE8M0)
    tl.store(sf_ptr + group, sf, mask=live)
    for step in range(0, group_size, BLOCK_G):
        col = start[:, None] + step + tl.arange(0, BLOCK_G)[None, :]
        mask = live[:, None] & (col < stop[:, None])
        x = _fp8.to_float32(
            tl.load(x_ptr + row[:, None] * stride_xm + col, mask=mask, other=0.0), INTERPRETED
        )
        codes = _fp8.encode_e4m3(tl.div_rn(x, sf[:, None] + tl.zeros_like(x)), NATIVE)
        tl.store(q_ptr + row[:, None] * K + col, codes, mask=mask)


def launch(x: Tensor, group_size: int = 128, ue8m0: bool = False, *, out: tuple[Tensor, Tensor]) -> None:
    q, sf = out
    if sf.numel() == 0:
        return
    K = x.size(-1)
    group_size = min(group_size, K)
    rows = x.reshape(-1, K)  # [num_rows, K]; a view unless the leading dimensions have no common stride
    target = _fp8.target_of(x.device)
    p = plan(group_size, target.interpreted)
    groups_per_row = sf.size(-1)
    _per_token_group_quant_fp8_kernel[(triton.cdiv(sf.numel(), p.BLOCK_M),)](
        rows, q.view(torch.uint8), sf,
        sf.numel(), groups_per_row, K, group_size, rows.stride(0),
        BLOCK_M=p.BLOCK_M, BLOCK_G=p.BLOCK_G, UE8M0=ue8m0, NATIVE=target.fp8,
        INTERPRETED=target.interpreted, num_warps=p.num_warps,
    )  # fmt: skip
