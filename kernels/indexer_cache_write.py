"""Triton backend of ``indexer_cache_write``."""

from dataclasses import dataclass

import triton
import triton.language as tl
from moela.kernels import _fp8
from moela.kernels._indexer_cache import find_keys, store_sf
from torch import Tensor


@dataclass(frozen=True)
class Plan:
    BLOCK_T: int  # tokens of one program
    BLOCK_D: int  # columns of a key, all of them
    num_warps: int


def plan(D: int, interpreted: bool) -> Plan:
    """The interpreter's time is programs, so it gets many tokens in each."""
    block_d = max(triton.next_power_of_2(D), 16)
    return Plan(BLOCK_T=max((32768 if interpreted else 2048) // block_d, 1), BLOCK_D=block_d, num_warps=4)


@triton.jit
def _indexer_cache_write_kernel(
    k_ptr, cache_ptr, slot_ptr,
    T, D, page_size, num_slots, stride_kt, stride_page,
    UE8M0: tl.constexpr, NATIVE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One program writes the keys of BLOCK_T tokens.

    Grid: (cdiv(T, BLOCK_T),). Invariant: nothing is stored for a slot outside of the cache.
    """
    token = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    col = tl.arange(0, BLOCK_D)[None, :]
    slot = tl.load(slot_ptr + token, mask=token < T, other=-1).to(tl.int64)
    live = (slot >= 0) & (slot < num_slots)
    mask = live[:, None] & (col < D)
    x = tl.load(k_ptr + token[:, None] * stride_kt + col, mask=mask, other=0.0)
    x = _fp8.to_float32(x, INTERPRETED)
    sf = _fp8.scale_factor(tl.max(_fp8.magnitude_bits(x), axis=1), UE8M0)
    codes = _fp8.encode_e4m3(tl.div_rn(x, sf[:, None] + tl.zeros_like(x)), NATIVE)
    code_ptrs, sf_ptrs = find_keys(cache_ptr, slot // page_size, slot % page_size, page_size, D, stride_page)
    tl.store(code_ptrs[:, None] + col, codes, mask=mask)
    store_sf(sf_ptrs, sf, live)


def launch(k: Tensor, cache: Tensor, slot_mapping: Tensor, ue8m0: bool = False) -> None:
    T, D = k.shape
    num_slots = cache.size(0) * cache.size(1)
    if T == 0 or num_slots == 0:
        return
    target = _fp8.target_of(k.device)
    p = plan(D, target.interpreted)
    _indexer_cache_write_kernel[(triton.cdiv(T, p.BLOCK_T),)](
        k, cache, slot_mapping,
        T, D, cache.size(1), num_slots, k.stride(0), cache.stride(0),
        UE8M0=ue8m0, NATIVE=target.fp8, BLOCK_T=p.BLOCK_T, BLOCK_D=p.BLOCK_D,
        INTERPRETED=target.interpreted, num_warps=p.num_warps,
    )  # fmt: skip
