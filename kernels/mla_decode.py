"""Triton backend of ``mla_decode``.

One pass over the keys of a request, not split between programs. A latent tile is loaded once: it is key and
value. Products of a cache of bytes are float32, as its scale factors are.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from moela.kernels import _fp8
from moela.kernels._gemm import dot
from moela.kernels._mla_cache import _load_latent, _load_rope, dot_dtype
from torch import Tensor

_TRITON = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


@dataclass(frozen=True)
class Plan:
    BLOCK_H: int  # heads of one program
    BLOCK_N: int  # keys of one step
    num_warps: int
    num_stages: int


def plan(dot_dtype: torch.dtype, target: _fp8.Target) -> Plan:
    """The sums of 16 heads of 512 columns are 32 registers of 256 threads; a tile of keys has 32 KB.

    Products of float32 keep both operands in registers, which takes twice the threads. Of one stage and two
    the one is chosen that spills nothing (tests/sass).
    """
    if dot_dtype == torch.float32:
        stages = 1 if target.lanes == 32 else 2
        return Plan(BLOCK_H=16, BLOCK_N=16, num_warps=512 // target.lanes, num_stages=stages)
    return Plan(BLOCK_H=16, BLOCK_N=32, num_warps=8, num_stages=1)


@triton.jit
def _mla_decode_kernel(
    q_ptr, cache_ptr, table_ptr, seqlens_ptr, out_ptr, lse_ptr,
    s_q, H, page_size, sm_scale, stride_qb, stride_qj, stride_qh, stride_page, stride_slot, stride_tb,
    L: tl.constexpr, R: tl.constexpr, IS_PAGED: tl.constexpr, IS_BYTES: tl.constexpr, CAUSAL: tl.constexpr,
    DOT: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_L: tl.constexpr,
    BLOCK_R: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_H heads of one query and walks over the keys that it sees, in order.

    Grid: (B * s_q, cdiv(H, BLOCK_H)). Invariants: all rows of a program see the same keys, so a step has at
    least one; keys that are not seen are not loaded, and nor are the pages beyond them.
    """
    request, query = tl.program_id(0) // s_q, tl.program_id(0) % s_q
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    latent, rope = tl.arange(0, BLOCK_L), tl.arange(0, BLOCK_R)
    limit = tl.load(seqlens_ptr + request)
    if CAUSAL:
        limit -= s_q - 1 - query
    q_ptrs = q_ptr + request.to(tl.int64) * stride_qb + query * stride_qj + head[:, None] * stride_qh
    is_head = (head < H)[:, None]
    q_c = tl.load(q_ptrs + latent[None, :], mask=is_head & (latent < L)[None, :], other=0.0)
    q_c = q_c if q_c.dtype == DOT else _fp8.to_float32(q_c, True)
    if R > 0:
        q_pe = tl.load(q_ptrs + L + rope[None, :], mask=is_head & (rope < R)[None, :], other=0.0)
        q_pe = q_pe if q_pe.dtype == DOT else _fp8.to_float32(q_pe, True)

    most = tl.full((BLOCK_H,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_H,), tl.float32)
    acc = tl.zeros((BLOCK_H, BLOCK_L), tl.float32)
    for start in range(0, limit, BLOCK_N):
        key = start + tl.arange(0, BLOCK_N)
        live = key < limit
        if IS_PAGED:
            entry = table_ptr + request.to(tl.int64) * stride_tb + key // page_size
            page = tl.load(entry, mask=live, other=0).to(tl.int64)
        else:
            page = request.to(tl.int64) + tl.zeros_like(key)
        row_ptrs = cache_ptr + page * stride_page + (key % page_size).to(tl.int64) * stride_slot
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

    has_keys = limit > 0
    row = tl.program_id(0).to(tl.int64) * H + head
    out = tl.where(has_keys, tl.div_rn(acc, (total[:, None] + tl.zeros_like(acc))), 0.0)
    out = _fp8.round_to(out, out_ptr.dtype.element_ty, INTERPRETED)
    tl.store(out_ptr + row[:, None] * L + latent[None, :], out, mask=is_head & (latent < L)[None, :])
    tl.store(lse_ptr + row, tl.where(has_keys, most + tl.log(total), float("-inf")), mask=head < H)


def launch(
    q: Tensor,
    cache: Tensor,
    block_table: Tensor | None,
    seqlens: Tensor,
    *,
    sm_scale: float,
    v_dim: int = 512,
    causal: bool = True,
    out: tuple[Tensor, Tensor],
) -> None:
    result, lse = out
    if lse.numel() == 0:
        return
    B, s_q, H, D = q.shape
    R = D - v_dim
    is_bytes = cache.dtype == torch.uint8
    dtype = dot_dtype(q.dtype, cache.dtype)
    target = _fp8.target_of(q.device)
    p = plan(dtype, target)
    table = seqlens if block_table is None else block_table
    _mla_decode_kernel[(B * s_q, triton.cdiv(H, p.BLOCK_H))](
        q, cache, table, seqlens, result, lse,
        s_q, H, max(cache.size(1), 1), sm_scale, *q.stride()[:3], *cache.stride()[:2], table.stride(0),
        L=v_dim, R=R, IS_PAGED=block_table is not None, IS_BYTES=is_bytes, CAUSAL=causal,
        DOT=_TRITON[dtype], BLOCK_H=p.BLOCK_H, BLOCK_N=p.BLOCK_N,
        BLOCK_L=max(triton.next_power_of_2(v_dim), 16), BLOCK_R=max(triton.next_power_of_2(R), 16),
        INTERPRETED=target.interpreted, num_warps=p.num_warps,
        num_stages=p.num_stages,
    )  # fmt: skip
