"""Triton backend of ``mla_norm_rope_cache_write``."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from moela.kernels import _fp8, _mla_row
from moela.reference._mla_cache import GROUP
from torch import Tensor


@dataclass(frozen=True)
class Plan:
    BLOCK_L: int  # columns of the latent, all of them
    BLOCK_P: int  # pairs of columns that are rotated, all of them
    num_warps: int


def plan(L: int, R: int) -> Plan:
    """One program writes a whole row."""
    pad = triton.next_power_of_2
    return Plan(BLOCK_L=max(pad(L), GROUP), BLOCK_P=max(pad(R // 2), 16), num_warps=4)


@triton.jit
def _sum_of_squares(x, GROUPS: tl.constexpr):
    """[GROUPS, 128] -> a number: each group by halves, then one group after the other, as it is defined."""
    halves = x * x
    for step in tl.static_range(7):
        halves = tl.reshape(halves, [GROUPS, 2, 64 >> step])
        low, high = tl.split(tl.trans(halves, 0, 2, 1))
        halves = low + high  # [GROUPS, 64 >> step]
    sums = tl.reshape(halves, [GROUPS])
    total = 0.0
    for group in tl.static_range(GROUPS):
        total += tl.sum(tl.where(tl.arange(0, GROUPS) == group, sums, 0.0), 0)  # exact: that of one group
    return total


@triton.jit
def _mla_norm_rope_cache_write_kernel(
    kv_ptr, weight_ptr, cos_ptr, sin_ptr, cache_ptr, slot_ptr,
    L, R, page_size, num_slots, eps, stride_kv, stride_cos, stride_sin, stride_page, stride_slot,
    INTERLEAVED: tl.constexpr, IS_BYTES: tl.constexpr, UE8M0: tl.constexpr, NATIVE: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_P: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One program writes the row of one token.

    Grid: (T,). Invariants: BLOCK_L is a multiple of 128, so a row of the tile is a group of scale factors and
    a block of the sum; nothing is stored for a slot outside of the cache; nothing is fused, so each value is
    rounded as it is defined.
    """
    tl.static_assert(BLOCK_L % 128 == 0, "a group must not be cut")
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_ptr + token).to(tl.int64)
    if (slot < 0) | (slot >= num_slots):
        return
    row_ptr = _mla_row.row_of(cache_ptr, slot, page_size, stride_page, stride_slot)
    kv_ptr += token * stride_kv
    dtype: tl.constexpr = kv_ptr.dtype.element_ty

    group = tl.arange(0, BLOCK_L // 128)[:, None]
    col = group * 128 + tl.arange(0, 128)[None, :]  # [BLOCK_L / 128, 128]
    x = _fp8.to_float32(tl.load(kv_ptr + col, mask=col < L, other=0.0), INTERPRETED)
    weight = _fp8.to_float32(tl.load(weight_ptr + col, mask=col < L, other=0.0), INTERPRETED)
    mean = tl.div_rn(_sum_of_squares(x, BLOCK_L // 128), L + 0.0)
    normalized = x * tl.div_rn(1.0, tl.sqrt_rn(mean + eps)) * weight
    kv_c = _fp8.to_float32(_fp8.round_to(normalized, dtype, INTERPRETED), INTERPRETED)
    _mla_row.store_latent(row_ptr, kv_c, col, group, L, IS_BYTES, UE8M0, NATIVE, INTERPRETED)

    if cos_ptr is not None:
        pair = tl.arange(0, BLOCK_P)  # [BLOCK_P]
        is_pair = pair < R // 2
        first = pair * 2 if INTERLEAVED else pair
        second = first + (1 if INTERLEAVED else R // 2)
        a = _fp8.to_float32(tl.load(kv_ptr + L + first, mask=is_pair, other=0.0), INTERPRETED)
        b = _fp8.to_float32(tl.load(kv_ptr + L + second, mask=is_pair, other=0.0), INTERPRETED)
        cos = _fp8.to_float32(
            tl.load(cos_ptr + token * stride_cos + pair, mask=is_pair, other=0.0), INTERPRETED
        )
        sin = _fp8.to_float32(
            tl.load(sin_ptr + token * stride_sin + pair, mask=is_pair, other=0.0), INTERPRETED
        )
        turned_a = _fp8.round_to(a * cos - b * sin, dtype, INTERPRETED)
        turned_b = _fp8.round_to(b * cos + a * sin, dtype, INTERPRETED)
        # Columns of no pair go behind the row, where nothing is stored.
        first = tl.where(is_pair, first, R)
        second = tl.where(is_pair, second, R)
        _mla_row.store_rope(
            row_ptr, _fp8.to_float32(turned_a, INTERPRETED), first, L, R, IS_BYTES, INTERPRETED
        )
        _mla_row.store_rope(
            row_ptr, _fp8.to_float32(turned_b, INTERPRETED), second, L, R, IS_BYTES, INTERPRETED
        )


def launch(
    kv: Tensor,
    weight: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    cache: Tensor,
    slot_mapping: Tensor,
    eps: float,
    interleaved: bool = True,
    ue8m0: bool = False,
) -> None:
    T, L, R = kv.size(0), weight.size(0), kv.size(1) - weight.size(0)
    num_slots = cache.size(0) * cache.size(1)
    if T == 0 or num_slots == 0:
        return
    target = _fp8.target_of(kv.device)
    p = plan(L, R)
    strides = (kv.stride(0), *(0 if t is None else t.stride(0) for t in (cos, sin)), *cache.stride()[:2])
    _mla_norm_rope_cache_write_kernel[(T,)](
        kv, weight, cos, sin, cache, slot_mapping,
        L, R, cache.size(1), num_slots, eps, *strides,
        INTERLEAVED=interleaved, IS_BYTES=cache.dtype == torch.uint8, UE8M0=ue8m0, NATIVE=target.fp8,
        BLOCK_L=p.BLOCK_L, BLOCK_P=p.BLOCK_P, INTERPRETED=target.interpreted, num_warps=p.num_warps,
        enable_fp_fusion=False,
    )  # fmt: skip
