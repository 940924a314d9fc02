"""Triton backend of ``mla_sparse``.

One pass over the entries of a row, in order. The latents of a step are gathered once: they are key and value.
Products of a cache of bytes are float32, as its scale factors are.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from moela.kernels import _fp8
from moela.kernels._gemm import DOT_DTYPE, dot
from moela.kernels._mla_cache import _load_latent, _load_rope, dot_dtype
from torch import Tensor


@dataclass(frozen=True)
class Plan:
    BLOCK_H: int  # heads of one program
    BLOCK_N: int  # entries of one step
    num_warps: int
    num_stages: int


def plan(dot_dtype: torch.dtype, target: _fp8.Target) -> Plan:
    """The sums of 16 heads of 512 columns are 32 registers of 256 threads; a tile of keys has 32 KB.

    Products of float32 keep both operands in registers: of twice the threads, or, where warps have 64 lanes,
    of threads with twice the registers. Steps and stages are the largest that spill nothing (tests/sass).
    """
    is_wide = target.lanes == 64
    if dot_dtype == torch.float32:
        num_warps, num_stages = (4, 2) if is_wide else (16, 1)
        return Plan(BLOCK_H=16, BLOCK_N=16, num_warps=num_warps, num_stages=num_stages)
    return Plan(BLOCK_H=16, BLOCK_N=16 if is_wide else 32, num_warps=8, num_stages=1)


@triton.jit
def _mla_sparse_kernel(
    q_ptr, cache_ptr, indices_ptr, sink_ptr, length_ptr, out_ptr, lse_ptr,
    H, topk, num_slots, page_size, sm_scale,
    stride_qt, stride_qh, stride_page, stride_slot, stride_it, stride_sink,
    L: tl.constexpr, R: tl.constexpr, HAS_SINK: tl.constexpr, HAS_LENGTH: tl.constexpr,
    IS_BYTES: tl.constexpr, DOT: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_R: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_H heads of one row and walks over its entries, in order.

    Grid: (rows, cdiv(H, BLOCK_H)). Invariants: no entry beyond the row's length and no slot beyond the cache
    is loaded; a step may have no key at all, so maxima begin with a finite number, less than every score.
    """
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    latent, rope = tl.arange(0, BLOCK_L), tl.arange(0, BLOCK_R)
    limit = topk
    if HAS_LENGTH:
        limit = tl.minimum(tl.load(length_ptr + row), topk)
    q_ptrs = q_ptr + row * stride_qt + head[:, None] * stride_qh
    is_head = (head < H)[:, None]
    q_c = tl.load(q_ptrs + latent[None, :], mask=is_head & (latent < L)[None, :], other=0.0)
    q_c = q_c if q_c.dtype == DOT else _fp8.to_float32(q_c, True)
    if R > 0:
        q_pe = tl.load(q_ptrs + L + rope[None, :], mask=is_head & (rope < R)[None, :], other=0.0)
        q_pe = q_pe if q_pe.dtype == DOT else _fp8.to_float32(q_pe, True)

    NO_SCORE: tl.constexpr = -3.4028234e38
    most = tl.full((BLOCK_H,), NO_SCORE, tl.float32)
    total = tl.zeros((BLOCK_H,), tl.float32)
    acc = tl.zeros((BLOCK_H, BLOCK_L), tl.float32)
    for start in range(0, limit, BLOCK_N):
        entry = start + tl.arange(0, BLOCK_N)
        slot = tl.load(indices_ptr + row * stride_it + entry, mask=entry < limit, other=-1)
        live = (slot >= 0) & (slot < num_slots)
        slot = tl.where(live, slot, 0)
        row_ptrs = (
            cache_ptr
            + (slot // page_size).to(tl.int64) * stride_page
            + (slot % page_size).to(tl.int64) * stride_slot
        )
        kv_c = _load_latent(row_ptrs, live, latent, L, IS_BYTES, DOT)
        scores = dot(q_c, kv_c.T, tl.zeros((BLOCK_H, BLOCK_N), tl.float32), INTERPRETED)
        if R > 0:
            k_pe = _load_rope(row_ptrs, live, rope, L, R, IS_BYTES, DOT)
            scores = dot(q_pe, k_pe.T, scores, INTERPRETED)
        scores = tl.where(live[None, :], scores * sm_scale, float("-inf"))
        new_most = tl.maximum(most, tl.max(scores, axis=1))
        weights = tl.exp(scores - new_most[:, None])
        rescale = tl.exp(most - new_most)
        total = total * rescale + tl.sum(weights, axis=1)
        acc = dot(_fp8.round_to(weights, DOT, INTERPRETED), kv_c, acc * rescale[:, None], INTERPRETED)
        most = new_most

    has_keys = total != 0.0  # so if it is NaN
    row_of_head = row * H + head
    lse = tl.where(has_keys, most + tl.log(total), float("-inf"))
    tl.store(lse_ptr + row_of_head, lse, mask=head < H)
    if HAS_SINK:
        # Infinite, it is as heavy as what is larger than every score.
        sink = tl.load(sink_ptr + head * stride_sink, mask=head < H, other=0.0)
        larger = tl.maximum(most, sink)
        share = tl.exp(most - larger)
        total = total * share + tl.where(sink == larger, 1.0, tl.exp(sink - larger))
        acc *= share[:, None]
    out = tl.where(has_keys[:, None], tl.div_rn(acc, (total[:, None] + tl.zeros_like(acc))), 0.0)
    out = _fp8.round_to(out, out_ptr.dtype.element_ty, INTERPRETED)
    tl.store(out_ptr + row_of_head[:, None] * L + latent[None, :], out, mask=is_head & (latent < L)[None, :])


def launch(
    q: Tensor,
    cache: Tensor,
    indices: Tensor,
    *,
    sm_scale: float,
    v_dim: int = 512,
    attn_sink: Tensor | None = None,
    topk_length: Tensor | None = None,
    out: tuple[Tensor, Tensor],
) -> None:
    result, lse = out
    if lse.numel() == 0:
        return
    H, D = q.shape[-2:]
    topk, rows = indices.size(-1), lse.numel() // H
    R = D - v_dim
    dtype = dot_dtype(q.dtype, cache.dtype)
    target = _fp8.target_of(q.device)
    p = plan(dtype, target)
    q, indices = q.reshape(rows, H, D), indices.reshape(rows, topk)
    length = indices if topk_length is None else topk_length.reshape(rows).contiguous()
    sink = lse if attn_sink is None else attn_sink
    _mla_sparse_kernel[(rows, triton.cdiv(H, p.BLOCK_H))](
        q, cache, indices, sink, length, result, lse,
        H, topk, cache.size(0) * cache.size(1), max(cache.size(1), 1), sm_scale,
        *q.stride()[:2], *cache.stride()[:2], indices.stride(0), sink.stride(0),
        L=v_dim, R=R, HAS_SINK=attn_sink is not None, HAS_LENGTH=topk_length is not None,
        IS_BYTES=cache.dtype == torch.uint8, DOT=DOT_DTYPE[dtype], BLOCK_H=p.BLOCK_H, BLOCK_N=p.BLOCK_N,
        BLOCK_L=max(triton.next_power_of_2(v_dim), 16), BLOCK_R=max(triton.next_power_of_2(R), 16),
        INTERPRETED=target.interpreted, num_warps=p.num_warps, num_stages=p.num_stages,
    )  # fmt: skip
