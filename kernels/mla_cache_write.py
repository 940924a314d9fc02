"""Triton backend of ``mla_cache_write``."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from moela.kernels import _fp8, _mla_row
from moela.reference._mla_cache import GROUP
from torch import Tensor


@dataclass(frozen=True)
class Plan:
    BLOCK_L: int  # columns of kv_c, all of them
    BLOCK_R: int  # columns of k_pe, all of them
    num_warps: int


def plan(L: int, R: int) -> Plan:
    """One program writes a whole row."""
    pad = triton.next_power_of_2
    return Plan(BLOCK_L=max(pad(L), GROUP), BLOCK_R=max(pad(R), 16), num_warps=4)


@triton.jit
def _mla_cache_write_kernel(
    kv_c_ptr, k_pe_ptr, cache_ptr, slot_ptr,
    L, R, page_size, num_slots, stride_ct, stride_rt, stride_page, stride_slot,
    IS_BYTES: tl.constexpr, UE8M0: tl.constexpr, NATIVE: tl.constexpr, BLOCK_L: tl.constexpr,
    BLOCK_R: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One program writes the row of one token.

    Grid: (T,). Invariants: BLOCK_L is a multiple of 128, so a row of the tile is a group of scale factors;
    nothing is stored for a slot outside of the cache.
    """
    tl.static_assert(BLOCK_L % 128 == 0, "a group must not be cut")
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_ptr + token).to(tl.int64)
    if (slot < 0) | (slot >= num_slots):
        return
    row_ptr = _mla_row.row_of(cache_ptr, slot, page_size, stride_page, stride_slot)

    pe = tl.arange(0, BLOCK_R)  # [BLOCK_R]
    k_pe = _fp8.to_float32(tl.load(k_pe_ptr + token * stride_rt + pe, mask=pe < R, other=0.0), INTERPRETED)
    _mla_row.store_rope(row_ptr, k_pe, pe, L, R, IS_BYTES, INTERPRETED)
    group = tl.arange(0, BLOCK_L // 128)[:, None]
    col = group * 128 + tl.arange(0, 128)[None, :]  # [BLOCK_L / 128, 128]
    kv_c = _fp8.to_float32(tl.load(kv_c_ptr + token * stride_ct + col, mask=col < L, other=0.0), INTERPRETED)
    _mla_row.store_latent(row_ptr, kv_c, col, group, L, IS_BYTES, UE8M0, NATIVE, INTERPRETED)


def launch(kv_c: Tensor, k_pe: Tensor, cache: Tensor, slot_mapping: Tensor, ue8m0: bool = False) -> None:
    (T, L), R = kv_c.shape, k_pe.size(1)
    num_slots = cache.size(0) * cache.size(1)
    if T == 0 or num_slots == 0:
        return
    target = _fp8.target_of(kv_c.device)
    p = plan(L, R)
    _mla_cache_write_kernel[(T,)](
        kv_c, k_pe, cache, slot_mapping,
        L, R, cache.size(1), num_slots, kv_c.stride(0), k_pe.stride(0), cache.stride(0), cache.stride(1),
        IS_BYTES=cache.dtype == torch.uint8, UE8M0=ue8m0, NATIVE=target.fp8, BLOCK_L=p.BLOCK_L,
        BLOCK_R=p.BLOCK_R, INTERPRETED=target.interpreted, num_warps=p.num_warps,
    )  # fmt: skip
