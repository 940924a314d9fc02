"""Launches of the Triton kernels of attention that aot.py compiles, by variant."""

from collections.abc import Callable
from typing import Any

import torch
from launches import BF16, F16, F32, FP8, Launch
from moela.kernels import (
    indexer_cache_write,
    indexer_logits,
    indexer_logits_paged,
    indexer_topk,
    merge_states,
    mla_cache_write,
    mla_decode,
    mla_norm_rope_cache_write,
    mla_prefill,
    mla_prefill_backward,
    mla_schedule,
    mla_sparse,
)
from moela.reference import _mla_cache


def states(dtype: torch.dtype, D=512) -> Launch:
    out, lse = torch.empty(100, 16, D, dtype=dtype), torch.empty(100, 16)
    return merge_states.launch, (out, lse, out, lse), {"out": (out.clone(), lse.clone())}


def cache_write(x: torch.dtype, cache: torch.dtype, ue8m0=False, slots=torch.int64) -> Launch:
    L, R = 512, 64
    row = _mla_cache.row_size(L, R, cache)
    args = (torch.empty(100, L, dtype=x), torch.empty(100, R, dtype=x), torch.empty(4, 64, row).to(cache))
    return mla_cache_write.launch, (*args, torch.zeros(100, dtype=slots), ue8m0), {}


def prefill(dtype: torch.dtype, D=192, Dv=128, causal=True, is_backward=False) -> Launch:
    T, H, B = 1000, 16, 3
    q, k = (torch.empty(T, H, D, dtype=dtype) for _ in range(2))
    v, out, dout = (torch.empty(T, H, Dv, dtype=dtype) for _ in range(3))
    lse, offsets = torch.empty(T, H), torch.empty(B + 1, dtype=torch.int32)
    options = {"sm_scale": 0.1, "causal": causal}
    if not is_backward:
        return mla_prefill.launch, (q, k, v, offsets, offsets), options | {"out": (out, lse)}
    args = (dout, lse, q, k, v, out, lse, offsets, offsets)
    return mla_prefill_backward.launch, args, options | {"out": (q, k, v)}


def norm_rope_cache_write(x: torch.dtype, cache: torch.dtype, L=512, R=64, interleaved=True) -> Launch:
    cos = torch.empty(100, R // 2) if R else None
    args = (
        torch.empty(100, L + R, dtype=x),
        torch.empty(L, dtype=x),
        cos,
        cos,
        torch.empty(4, 64, _mla_cache.row_size(L, R, cache)).to(cache),
        torch.zeros(100, dtype=torch.int64),
    )
    return mla_norm_rope_cache_write.launch, args, {"eps": 1e-6, "interleaved": interleaved}


def decode(
    q: torch.dtype, cache: torch.dtype, H=16, s_q=1, L=512, R=64, is_paged=True, ragged=False, invariant=False
) -> Launch:
    row = _mla_cache.row_size(L, R, cache)
    tokens = (4 * s_q,) if ragged else (4, s_q)
    args = (
        torch.empty(*tokens, H, L + R, dtype=q),
        torch.empty(16, 64, row).to(cache),
        torch.zeros(4, 9, dtype=torch.int32) if is_paged else None,
        torch.zeros(4, dtype=torch.int32),
    )
    kwargs = {"sm_scale": 0.1, "v_dim": L, "batch_invariant": invariant}
    kwargs["cu_seqlens_q"] = torch.zeros(5, dtype=torch.int32) if ragged else None
    out = (torch.empty(*tokens, H, L, dtype=q), torch.empty(*tokens, H))
    return mla_decode.launch, args, kwargs | {"out": out}


def schedule(num_parts: int, batch_invariant: bool) -> Launch:
    kwargs = {"rows": 128, "num_parts": num_parts, "batch_invariant": batch_invariant}
    out = (torch.zeros(num_parts + 103, 4, dtype=torch.int32),)
    return mla_schedule.launch, (torch.zeros(100, dtype=torch.int32),), kwargs | {"out": out}


def indexer(H: int, D=128, T=100) -> Launch:
    S, ranges = 4096, torch.zeros(T, dtype=torch.int32)
    args = (torch.empty(T, H, D).to(FP8), torch.empty(S, D).to(FP8), torch.empty(S), torch.empty(T, H))
    return indexer_logits.launch, (*args, ranges, ranges), {"out": (torch.empty(T, S),)}


def indexer_pages(H: int, D=128, s_q=2) -> Launch:
    B, S = 4, 576
    args = (
        torch.empty(B, s_q, H, D).to(FP8),
        torch.empty(16, 64, D + 4).to(torch.uint8),
        torch.empty(B, s_q, H),
        torch.zeros(B, 9, dtype=torch.int32),
        torch.zeros(B, dtype=torch.int32),
    )
    return indexer_logits_paged.launch, args, {"max_seqlen": S, "out": (torch.empty(B, s_q, S),)}


def indexer_write(x: torch.dtype, D=128, ue8m0=False) -> Launch:
    args = (torch.empty(100, D, dtype=x), torch.empty(4, 64, D + 4).to(torch.uint8))
    return indexer_cache_write.launch, (*args, torch.zeros(100, dtype=torch.int64), ue8m0), {}


def largest(**kwargs: Any) -> Launch:
    out = (torch.empty(4, 2, 2048, dtype=torch.int32),)
    return indexer_topk.launch, (torch.empty(4, 2, 131072), 2048), kwargs | {"out": out}


def sparse(q: torch.dtype, cache: torch.dtype, L=512, R=64, sink=True, length=True) -> Launch:
    row = _mla_cache.row_size(L, R, cache)
    args = (
        torch.empty(4, 16, L + R, dtype=q),
        torch.empty(16, 64, row).to(cache),
        torch.zeros(4, 2048, dtype=torch.int32),
    )
    kwargs = {
        "sm_scale": 0.1,
        "v_dim": L,
        "attn_sink": torch.empty(16) if sink else None,
        "topk_length": torch.zeros(4, dtype=torch.int32) if length else None,
        "out": (torch.empty(4, 16, L, dtype=q), torch.empty(4, 16)),
    }
    return mla_sparse.launch, args, kwargs


VARIANTS: dict[str, Callable[[], Launch]] = {
    "indexer_logits-e4m3": lambda: indexer(64),
    "indexer_logits-e4m3-odd": lambda: indexer(5, D=37),
    "indexer_logits_paged-e4m3": lambda: indexer_pages(64),
    "indexer_logits_paged-e4m3-32": lambda: indexer_pages(32, s_q=1),
    "indexer_cache_write-bf16-to_e4m3": lambda: indexer_write(BF16),
    "indexer_cache_write-f32-ue8m0-to_e4m3": lambda: indexer_write(F32, D=64, ue8m0=True),
    "indexer_topk-f32": lambda: largest(),
    "indexer_topk-f32-slots": lambda: largest(
        ks=torch.zeros(4, 2, dtype=torch.int32),
        ke=torch.zeros(4, 2, dtype=torch.int32),
        block_table=torch.zeros(9, 2048, dtype=torch.int32),
        page_size=64,
        request_ids=torch.zeros(4, 2, dtype=torch.int32),
    ),
    "merge_states-bf16": lambda: states(BF16),
    "merge_states-f32-narrow": lambda: states(F32, D=37),
    "mla_cache_write-bf16": lambda: cache_write(BF16, BF16),
    "mla_cache_write-f32-f16": lambda: cache_write(F32, F16, slots=torch.int32),
    "mla_cache_write-bf16-to_e4m3": lambda: cache_write(BF16, torch.uint8),
    "mla_norm_rope_cache_write-bf16": lambda: norm_rope_cache_write(BF16, BF16),
    "mla_norm_rope_cache_write-bf16-to_e4m3": lambda: norm_rope_cache_write(BF16, torch.uint8),
    "mla_norm_rope_cache_write-f32-halves": lambda: norm_rope_cache_write(F32, F16, 300, interleaved=False),
    "mla_norm_rope_cache_write-f16-plain": lambda: norm_rope_cache_write(F16, F16, 1, 0),
    "mla_decode-bf16": lambda: decode(BF16, BF16),
    "mla_decode-f16-dense": lambda: decode(F16, F16, is_paged=False),
    "mla_decode-bf16-bytes": lambda: decode(BF16, torch.uint8),
    "mla_decode-bf16-64_heads": lambda: decode(BF16, BF16, H=64),
    "mla_decode-bf16-128_heads-2": lambda: decode(BF16, BF16, H=128, s_q=2, invariant=True),
    "mla_decode-bf16-ragged": lambda: decode(BF16, BF16, s_q=2, ragged=True),
    "mla_decode-bf16-bytes-64_heads-2": lambda: decode(BF16, torch.uint8, H=64, s_q=2),
    "mla_decode-f16-bytes": lambda: decode(F16, torch.uint8),
    "mla_decode-f32-256": lambda: decode(F32, F32, L=256, R=0),
    "mla_schedule-132": lambda: schedule(132, batch_invariant=False),
    "mla_schedule-1024-invariant": lambda: schedule(1024, batch_invariant=True),
    "mla_prefill-bf16": lambda: prefill(BF16),
    "mla_prefill-f16-256-all": lambda: prefill(F16, 256, 256, causal=False),
    "mla_prefill-f32": lambda: prefill(F32),
    "mla_prefill-f32-256": lambda: prefill(F32, 256, 256),
    "mla_prefill_backward-bf16": lambda: prefill(BF16, is_backward=True),
    "mla_prefill_backward-f16-256-all": lambda: prefill(F16, 256, 256, causal=False, is_backward=True),
    "mla_prefill_backward-f32": lambda: prefill(F32, is_backward=True),
    "mla_prefill_backward-f32-256": lambda: prefill(F32, 256, 256, is_backward=True),
    "mla_sparse-bf16": lambda: sparse(BF16, BF16),
    "mla_sparse-f16-plain": lambda: sparse(F16, F16, sink=False, length=False),
    "mla_sparse-bf16-bytes": lambda: sparse(BF16, torch.uint8),
    "mla_sparse-f32-256": lambda: sparse(F32, F32, L=256, R=0),
}
