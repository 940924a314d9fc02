"""Triton backend of ``mla_prefill_backward``: one kernel sums over keys, one, for dk and dv, over queries.

Both recompute weights from the lse, and none adds to memory that another program adds to. The first leaves
sum(dout * fwd_out) - dlse for the second.
"""

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
    BLOCK_OWN: int  # rows whose sums a program owns
    BLOCK_STEP: int  # rows of one step
    num_warps: int
    num_stages: int


def plan(dtype: torch.dtype, target: _fp8.Target) -> Plan:
    """A program keeps sums of up to 512 columns and, as operands, as many of k and v, or of q and dout.

    64 rows of each would spill, and so would float32 in one stage, but for AMD, which has more registers.
    """
    if target.interpreted:
        return Plan(BLOCK_OWN=32, BLOCK_STEP=32, num_warps=4, num_stages=1)
    num_warps = 256 // target.lanes
    if dtype == torch.float32:
        return Plan(
            BLOCK_OWN=16, BLOCK_STEP=16, num_warps=num_warps, num_stages=2 if target.lanes == 32 else 1
        )
    return Plan(BLOCK_OWN=32, BLOCK_STEP=32, num_warps=num_warps, num_stages=1)


@triton.jit
def _pair(
    a_1, a_2, b_1, b_2, x, y, lse, delta, seen, sm_scale, HAS_2: tl.constexpr, QUERY_IS_ROW: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """(weights, gradients of scores) [rows of a, rows of b], rounded to the type of a; 0 where not seen.

    a and b are q and k, x and y dout and v, or both the other way round. Third: whether a row of b or y may
    not be finite that not all rows of a see, as then no product with it is.
    """
    scores = dot(a_1, b_1.T, tl.zeros((a_1.shape[0], b_1.shape[0]), tl.float32), INTERPRETED)
    if HAS_2:
        scores = dot(a_2, b_2.T, scores, INTERPRETED)
    gradients = dot(x, y.T, tl.zeros((a_1.shape[0], b_1.shape[0]), tl.float32), INTERPRETED)
    is_odd = _prefill.is_any(~seen & ~(is_finite(scores, INTERPRETED) & is_finite(gradients, INTERPRETED)))
    if QUERY_IS_ROW:
        lse, delta = lse[:, None], delta[:, None]
    else:
        lse, delta = lse[None, :], delta[None, :]
    weights = tl.where(seen, tl.exp(scores * sm_scale - lse), 0.0)
    gradients = tl.where(seen, weights * (gradients - delta) * sm_scale, 0.0)
    rounded = _fp8.round_to(weights, a_1.dtype, INTERPRETED)
    return rounded, _fp8.round_to(gradients, a_1.dtype, INTERPRETED), is_odd


@triton.jit
def _load_pieces(
    ptr, row, live, stride_t, D: tl.constexpr, BLOCK_1: tl.constexpr, BLOCK_2: tl.constexpr,
    DOT: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Rows of q or k in two pieces; the second is the first one again where there is none."""
    first = _prefill.load_rows(ptr, row, live, stride_t, D, BLOCK_1, DOT, INTERPRETED)
    second = first
    if D > BLOCK_1:
        second = _prefill.load_rows(
            ptr + BLOCK_1, row, live, stride_t, D - BLOCK_1, BLOCK_2, DOT, INTERPRETED
        )
    return first, second


@triton.jit
def _dq_kernel(
    dout_ptr, dlse_ptr, q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, offsets_q_ptr, offsets_k_ptr,
    delta_ptr, dq_ptr, Tq, B, H, sm_scale, stride_dt, stride_dh, stride_ot, stride_oh, stride_lt, stride_lh,
    stride_gt, stride_gh, stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh,
    D: tl.constexpr, DV: tl.constexpr, CAUSAL: tl.constexpr, DOT: tl.constexpr,
    BLOCK_OWN: tl.constexpr, BLOCK_STEP: tl.constexpr, BLOCK_1: tl.constexpr, BLOCK_2: tl.constexpr,
    BLOCK_V: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One program owns dq, and delta, of BLOCK_OWN queries of one sequence and head.

    Grid: (num_slots of Tq, H), the last tile first. Invariant: rows of queries without keys are not loaded.
    """
    slot, head = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1).to(tl.int64)
    sequence = _prefill.sequence_of(slot, offsets_q_ptr, B, BLOCK_OWN)
    q_begin, q_count = _prefill.bounds_of(sequence, offsets_q_ptr, B, Tq)
    tile = (slot - q_begin // BLOCK_OWN - sequence) * BLOCK_OWN
    if tile < q_count:
        k_begin, k_count = _prefill.bounds_of(sequence, offsets_k_ptr, B, 0)
        k_count = tl.maximum(k_count, 0)
        query = tile + tl.arange(0, BLOCK_OWN)
        limit, last = query * 0 + k_count, k_count
        if CAUSAL:
            limit = k_count - (q_count - 1 - query)
            last = tl.minimum(k_count - (q_count - tile - BLOCK_OWN), k_count)
        is_query = query < q_count
        live = is_query & (limit > 0)
        row = q_begin + query
        k_ptr += k_begin.to(tl.int64) * stride_kt + head * stride_kh
        v_ptr += k_begin.to(tl.int64) * stride_vt + head * stride_vh
        q_1, q_2 = _load_pieces(
            q_ptr + head * stride_qh, row, live, stride_qt, D, BLOCK_1, BLOCK_2, DOT, INTERPRETED
        )
        dout = _prefill.load_rows(
            dout_ptr + head * stride_dh, row, live, stride_dt, DV, BLOCK_V, DOT, INTERPRETED
        )
        out = _prefill.load_rows(
            out_ptr + head * stride_oh, row, live, stride_ot, DV, BLOCK_V, DOT, INTERPRETED
        )
        products = _fp8.to_float32(dout, INTERPRETED) * _fp8.to_float32(out, INTERPRETED)
        delta = tl.sum(products, axis=1)
        lse = tl.load(lse_ptr + row.to(tl.int64) * stride_lt + head * stride_lh, mask=live, other=0.0)
        if dlse_ptr is not None:
            of_lse = dlse_ptr + row.to(tl.int64) * stride_gt + head * stride_gh
            delta -= tl.load(of_lse, mask=live, other=0.0)
        tl.store(delta_ptr + row.to(tl.int64) * H + head, delta, mask=is_query)

        dq_1 = tl.zeros((BLOCK_OWN, BLOCK_1), tl.float32)
        dq_2 = tl.zeros((BLOCK_OWN, BLOCK_2), tl.float32)
        odd = last
        for start in range(0, last, BLOCK_STEP):
            key = start + tl.arange(0, BLOCK_STEP)
            is_key = key < last
            k_1, k_2 = _load_pieces(k_ptr, key, is_key, stride_kt, D, BLOCK_1, BLOCK_2, DOT, INTERPRETED)
            v = _prefill.load_rows(v_ptr, key, is_key, stride_vt, DV, BLOCK_V, DOT, INTERPRETED)
            seen = (key[None, :] < limit[:, None]) & is_query[:, None]
            _, gradients, is_odd = _pair(
                q_1, q_2, k_1, k_2, dout, v, lse, delta, seen, sm_scale, D > BLOCK_1, True, INTERPRETED
            )
            if is_odd:
                odd = tl.minimum(odd, start)
                k_1 = _prefill.finite_or_zero(k_1, INTERPRETED)
                k_2 = _prefill.finite_or_zero(k_2, INTERPRETED)
            dq_1 = dot(gradients, k_1, dq_1, INTERPRETED)
            if D > BLOCK_1:
                dq_2 = dot(gradients, k_2, dq_2, INTERPRETED)
        # With such a key the score is infinite or NaN, and its gradient 0 or NaN: the product is NaN.
        dq_1 = _prefill.add_not_finite(
            dq_1, 0.0, k_ptr, odd, last, query * 0, limit, stride_kt, min(D, BLOCK_1), DOT, INTERPRETED
        )
        to = dq_ptr + head * D
        _prefill.store_rows(to, dq_1, row, is_query, H * D, D, INTERPRETED)
        if D > BLOCK_1:
            dq_2 = _prefill.add_not_finite(
                dq_2, 0.0, k_ptr + BLOCK_1, odd, last, query * 0, limit, stride_kt, D - BLOCK_1, DOT,
                INTERPRETED,
            )  # fmt: skip
            _prefill.store_rows(to + BLOCK_1, dq_2, row, is_query, H * D, D - BLOCK_1, INTERPRETED)


@triton.jit
def _dkv_kernel(
    dout_ptr, q_ptr, k_ptr, v_ptr, lse_ptr, offsets_q_ptr, offsets_k_ptr, delta_ptr, dk_ptr, dv_ptr,
    Tk, B, H, sm_scale, stride_dt, stride_dh, stride_lt, stride_lh, stride_qt, stride_qh,
    stride_kt, stride_kh, stride_vt, stride_vh,
    D: tl.constexpr, DV: tl.constexpr, CAUSAL: tl.constexpr, DOT: tl.constexpr,
    BLOCK_OWN: tl.constexpr, BLOCK_STEP: tl.constexpr, BLOCK_1: tl.constexpr, BLOCK_2: tl.constexpr,
    BLOCK_V: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One program owns dk and dv of BLOCK_OWN keys of one sequence and head.

    Grid: (num_slots of Tk, H), the first tile first, as most queries see it. Invariant: every query that is
    loaded sees the first key of the tile.
    """
    slot, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    sequence = _prefill.sequence_of(slot, offsets_k_ptr, B, BLOCK_OWN)
    k_begin, k_count = _prefill.bounds_of(sequence, offsets_k_ptr, B, Tk)
    tile = (slot - k_begin // BLOCK_OWN - sequence) * BLOCK_OWN
    if tile < k_count:
        q_begin, q_count = _prefill.bounds_of(sequence, offsets_q_ptr, B, 0)
        key = tile + tl.arange(0, BLOCK_OWN)
        is_key = key < k_count
        row = k_begin + key
        first = tl.maximum(tile + q_count - k_count, 0) if CAUSAL else 0
        q_ptr += q_begin.to(tl.int64) * stride_qt + head * stride_qh
        dout_ptr += q_begin.to(tl.int64) * stride_dt + head * stride_dh
        lse_ptr += q_begin.to(tl.int64) * stride_lt + head * stride_lh
        delta_ptr += q_begin.to(tl.int64) * H + head
        k_1, k_2 = _load_pieces(
            k_ptr + head * stride_kh, row, is_key, stride_kt, D, BLOCK_1, BLOCK_2, DOT, INTERPRETED
        )
        v = _prefill.load_rows(
            v_ptr + head * stride_vh, row, is_key, stride_vt, DV, BLOCK_V, DOT, INTERPRETED
        )

        dk_1 = tl.zeros((BLOCK_OWN, BLOCK_1), tl.float32)
        dk_2 = tl.zeros((BLOCK_OWN, BLOCK_2), tl.float32)
        dv = tl.zeros((BLOCK_OWN, BLOCK_V), tl.float32)
        least = key - k_count + q_count if CAUSAL else key * 0  # the first query that sees the key
        limit, odd = key * 0 + q_count, q_count
        for start in range(first, q_count, BLOCK_STEP):
            query = start + tl.arange(0, BLOCK_STEP)
            is_query = query < q_count
            q_1, q_2 = _load_pieces(q_ptr, query, is_query, stride_qt, D, BLOCK_1, BLOCK_2, DOT, INTERPRETED)
            dout = _prefill.load_rows(dout_ptr, query, is_query, stride_dt, DV, BLOCK_V, DOT, INTERPRETED)
            lse = tl.load(lse_ptr + query.to(tl.int64) * stride_lt, mask=is_query, other=0.0)
            delta = tl.load(delta_ptr + query.to(tl.int64) * H, mask=is_query, other=0.0)
            seen = is_query[None, :] & is_key[:, None]
            seen &= query[None, :] >= least[:, None]
            weights, gradients, is_odd = _pair(
                k_1, k_2, q_1, q_2, v, dout, lse, delta, seen, sm_scale, D > BLOCK_1, False, INTERPRETED
            )
            if is_odd:
                odd = tl.minimum(odd, start)
                dout = _prefill.finite_or_zero(dout, INTERPRETED)
                q_1 = _prefill.finite_or_zero(q_1, INTERPRETED)
                q_2 = _prefill.finite_or_zero(q_2, INTERPRETED)
            dv = dot(weights, dout, dv, INTERPRETED)
            dk_1 = dot(gradients, q_1, dk_1, INTERPRETED)
            if D > BLOCK_1:
                dk_2 = dot(gradients, q_2, dk_2, INTERPRETED)
        dk_1 = _prefill.add_not_finite(
            dk_1, 0.0, q_ptr, odd, q_count, least, limit, stride_qt, min(D, BLOCK_1), DOT, INTERPRETED
        )
        dv = _prefill.add_not_finite(
            dv, 1.0, dout_ptr, odd, q_count, least, limit, stride_dt, DV, DOT, INTERPRETED
        )
        to = dk_ptr + head * D
        _prefill.store_rows(to, dk_1, row, is_key, H * D, D, INTERPRETED)
        if D > BLOCK_1:
            dk_2 = _prefill.add_not_finite(
                dk_2, 0.0, q_ptr + BLOCK_1, odd, q_count, least, limit, stride_qt, D - BLOCK_1, DOT,
                INTERPRETED,
            )  # fmt: skip
            _prefill.store_rows(to + BLOCK_1, dk_2, row, is_key, H * D, D - BLOCK_1, INTERPRETED)
        _prefill.store_rows(dv_ptr + head * DV, dv, row, is_key, H * DV, DV, INTERPRETED)


def launch(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    fwd_out: Tensor,
    lse: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    *,
    sm_scale: float,
    causal: bool = True,
    out: tuple[Tensor, Tensor, Tensor],
) -> None:
    (Tq, H, D), (Tk, DV), B = q.shape, v.shape[::2], cu_seqlens_q.size(0) - 1
    if H == 0:
        return
    dq, dk, dv = out
    target = _fp8.target_of(q.device)
    p = plan(q.dtype, target)
    delta = q.new_empty((Tq, H), dtype=torch.float32)
    common = _prefill.pieces_of(D) | {
        "DV": DV, "CAUSAL": causal, "DOT": DOT_DTYPE[q.dtype],
        "BLOCK_OWN": p.BLOCK_OWN, "BLOCK_STEP": p.BLOCK_STEP,
        "BLOCK_V": max(triton.next_power_of_2(DV), 16), "INTERPRETED": target.interpreted,
        "num_warps": p.num_warps, "num_stages": p.num_stages,
    }  # fmt: skip
    strides_qkv = (*q.stride()[:2], *k.stride()[:2], *v.stride()[:2])
    if Tq > 0:
        _dq_kernel[(_prefill.num_slots(Tq, B, p.BLOCK_OWN), H)](
            dout, dlse, q, k, v, fwd_out, lse, cu_seqlens_q, cu_seqlens_k, delta, dq,
            Tq, B, H, sm_scale, *dout.stride()[:2], *fwd_out.stride()[:2], *lse.stride(),
            *(lse if dlse is None else dlse).stride(), *strides_qkv, **common,
        )  # fmt: skip
    if Tk > 0:
        _dkv_kernel[(_prefill.num_slots(Tk, B, p.BLOCK_OWN), H)](
            dout, q, k, v, lse, cu_seqlens_q, cu_seqlens_k, delta, dk, dv,
            Tk, B, H, sm_scale, *dout.stride()[:2], *lse.stride(), *strides_qkv, **common,
        )  # fmt: skip
