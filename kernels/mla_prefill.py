"""Triton backend of ``mla_prefill``: a tile of queries of one head walks over the keys that it sees."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from moela.kernels import _fp8, _prefill
from moela.kernels._gemm import DOT_DTYPE, dot
from moela.kernels._mla_cache import is_finite
from torch import Tensor


@dataclass(frozen=True)
class Plan:
    BLOCK_M: int  # queries of one program
    BLOCK_N: int  # keys of one step
    num_warps: int
    num_stages: int


def plan(dtype: torch.dtype, columns: int, target: _fp8.Target) -> Plan:
    """columns: the larger of D and Dv. What is chosen spills nothing and fits shared memory (tests/sass)."""
    if target.interpreted:
        return Plan(BLOCK_M=32, BLOCK_N=32, num_warps=4, num_stages=1)
    num_warps = 256 // target.lanes
    if dtype == torch.float32:  # both operands of a product are kept in registers
        return Plan(BLOCK_M=16, BLOCK_N=16, num_warps=num_warps, num_stages=1)
    return Plan(BLOCK_M=64, BLOCK_N=32 if columns > 192 else 64, num_warps=num_warps, num_stages=2)


@triton.jit
def _step(
    q_1, q_2, most, total, acc, odd, start, limit, end, k_ptr, v_ptr, stride_kt, stride_vt, sm_scale,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_1: tl.constexpr, BLOCK_2: tl.constexpr,
    MASKED: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """BLOCK_N keys from `start` on, of which row i sees those below limit[i]; those from `end` on are not
    loaded. Without MASKED all rows see all of them; with it values that are not finite are left out, and
    `odd` is at or before the first of them."""
    DOT: tl.constexpr = q_1.dtype
    BLOCK_V: tl.constexpr = acc.shape[1]
    key = start + tl.arange(0, BLOCK_N)
    live = key < end
    k_1 = _prefill.load_rows(k_ptr, key, live, stride_kt, D, BLOCK_1, DOT, INTERPRETED)
    scores = dot(q_1, k_1.T, tl.zeros((q_1.shape[0], BLOCK_N), tl.float32), INTERPRETED)
    if D > BLOCK_1:
        k_2 = _prefill.load_rows(
            k_ptr + BLOCK_1, key, live, stride_kt, D - BLOCK_1, BLOCK_2, DOT, INTERPRETED
        )
        scores = dot(q_2, k_2.T, scores, INTERPRETED)
    scores = scores * sm_scale
    if MASKED:
        scores = tl.where(key[None, :] < limit[:, None], scores, float("-inf"))
    new_most = tl.maximum(most, tl.max(scores, axis=1))
    # A row that has seen no key yet: -Inf less -Inf would be NaN.
    base = tl.where(new_most == float("-inf"), 0.0, new_most)
    weights = tl.exp(scores - base[:, None])
    rescale = tl.exp(most - base)
    total = total * rescale + tl.sum(weights, axis=1)
    weights = _fp8.round_to(weights, DOT, INTERPRETED)
    v = _prefill.load_rows(v_ptr, key, live, stride_vt, DV, BLOCK_V, DOT, INTERPRETED)
    acc *= rescale[:, None]
    if MASKED:
        odd = tl.where(_prefill.is_any(~is_finite(v, INTERPRETED)), tl.minimum(odd, start), odd)
        v = _prefill.finite_or_zero(v, INTERPRETED)
    acc = dot(weights, v, acc, INTERPRETED)
    return new_most, total, acc, odd


@triton.jit
def _mla_prefill_kernel(
    q_ptr, k_ptr, v_ptr, offsets_q_ptr, offsets_k_ptr, out_ptr, lse_ptr,
    Tq, B, H, sm_scale, stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh,
    D: tl.constexpr, DV: tl.constexpr, CAUSAL: tl.constexpr, DOT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_1: tl.constexpr, BLOCK_2: tl.constexpr,
    BLOCK_V: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_M queries of one sequence and head, and walks over their keys in order.

    Grid: (num_slots of Tq, H), the last tile first: it sees the most. Invariants: keys that the first query
    sees need no mask; keys that no query of the tile sees are not loaded.
    """
    slot, head = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1).to(tl.int64)
    sequence = _prefill.sequence_of(slot, offsets_q_ptr, B, BLOCK_M)
    q_begin, q_count = _prefill.bounds_of(sequence, offsets_q_ptr, B, Tq)
    tile = (slot - q_begin // BLOCK_M - sequence) * BLOCK_M  # its first query
    if tile < q_count:
        k_begin, k_count = _prefill.bounds_of(sequence, offsets_k_ptr, B, 0)
        k_count = tl.maximum(k_count, 0)  # the rows of no sequence have no keys
        query = tile + tl.arange(0, BLOCK_M)
        is_query = query < q_count
        limit, last = query * 0 + k_count, k_count
        if CAUSAL:
            limit = k_count - (q_count - 1 - query)
            last = tl.minimum(k_count - (q_count - 1 - (tile + BLOCK_M - 1)), k_count)
        q_ptr += q_begin.to(tl.int64) * stride_qt + head * stride_qh
        k_ptr += k_begin.to(tl.int64) * stride_kt + head * stride_kh
        v_ptr += k_begin.to(tl.int64) * stride_vt + head * stride_vh
        q_1 = _prefill.load_rows(q_ptr, query, is_query, stride_qt, D, BLOCK_1, DOT, INTERPRETED)
        q_2 = q_1
        if D > BLOCK_1:
            q_2 = _prefill.load_rows(
                q_ptr + BLOCK_1, query, is_query, stride_qt, D - BLOCK_1, BLOCK_2, DOT, INTERPRETED
            )

        most = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        acc = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)
        first = tl.maximum(k_count - (q_count - 1 - tile) if CAUSAL else k_count, 0)
        unmasked, odd = first // BLOCK_N * BLOCK_N, last
        for start in range(0, unmasked, BLOCK_N):
            most, total, acc, odd = _step(
                q_1, q_2, most, total, acc, odd, start, limit, k_count, k_ptr, v_ptr, stride_kt, stride_vt,
                sm_scale, D, DV, BLOCK_N, BLOCK_1, BLOCK_2, False, INTERPRETED,
            )  # fmt: skip
        for start in range(unmasked, last, BLOCK_N):
            most, total, acc, odd = _step(
                q_1, q_2, most, total, acc, odd, start, limit, last, k_ptr, v_ptr, stride_kt, stride_vt,
                sm_scale, D, DV, BLOCK_N, BLOCK_1, BLOCK_2, True, INTERPRETED,
            )  # fmt: skip

        acc = _prefill.add_not_finite(
            acc, 1.0, v_ptr, odd, last, query * 0, limit, stride_vt, DV, DOT, INTERPRETED
        )
        is_empty = total == 0.0  # not so if it is NaN
        total = tl.where(is_empty, 1.0, total)
        out = tl.div_rn(acc, total[:, None] + tl.zeros_like(acc))
        row = (q_begin + query).to(tl.int64) * H + head
        _prefill.store_rows(out_ptr, out, row, is_query, DV, DV, INTERPRETED)
        tl.store(lse_ptr + row, tl.where(is_empty, float("-inf"), most + tl.log(total)), mask=is_query)


def launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    *,
    sm_scale: float,
    causal: bool = True,
    out: tuple[Tensor, Tensor],
) -> None:
    result, lse = out
    if lse.numel() == 0:
        return
    (Tq, H, D), DV, B = q.shape, v.size(2), cu_seqlens_q.size(0) - 1
    target = _fp8.target_of(q.device)
    p = plan(q.dtype, max(D, DV), target)
    _mla_prefill_kernel[(_prefill.num_slots(Tq, B, p.BLOCK_M), H)](
        q, k, v, cu_seqlens_q, cu_seqlens_k, result, lse,
        Tq, B, H, sm_scale, *q.stride()[:2], *k.stride()[:2], *v.stride()[:2],
        **_prefill.pieces_of(D), DV=DV, CAUSAL=causal, DOT=DOT_DTYPE[q.dtype],
        BLOCK_M=p.BLOCK_M, BLOCK_N=p.BLOCK_N, BLOCK_V=max(triton.next_power_of_2(DV), 16),
        INTERPRETED=target.interpreted, num_warps=p.num_warps, num_stages=p.num_stages,
    )  # fmt: skip
