"""Triton backend of ``indexer_logits_paged``."""

import triton
import triton.language as tl
from moela.kernels import _fp8
from moela.kernels._indexer import dot_dtype, load_codes, plan, sum_of_heads
from moela.kernels._indexer_cache import find_keys, load_sf
from torch import Tensor


@triton.jit
def _indexer_logits_paged_kernel(
    q_ptr, cache_ptr, weights_ptr, table_ptr, seqlens_ptr, logits_ptr,
    s_q, H, D, page_size, max_seqlen, stride_qb, stride_qj, stride_qh, stride_page, stride_wb, stride_wj,
    stride_tb,
    DOT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_N columns of the logits of all queries of a request, whose keys it loads once.

    Grid: (cdiv(max_seqlen, BLOCK_N) * B,), columns first; either factor may exceed 65535. Invariant: of keys
    at or beyond the length nothing is loaded, the entries of their pages neither.
    """
    tiles = tl.cdiv(max_seqlen, BLOCK_N)
    start = tl.program_id(0) % tiles * BLOCK_N
    request = (tl.program_id(0) // tiles).to(tl.int64)
    key = start + tl.arange(0, BLOCK_N)
    col = tl.arange(0, BLOCK_D)
    seqlen = tl.load(seqlens_ptr + request)
    live = key < seqlen
    page = tl.load(table_ptr + request * stride_tb + key // page_size, mask=live, other=0).to(tl.int64)
    offset = (key % page_size).to(tl.int64)
    k_ptrs, sf_ptrs = find_keys(cache_ptr, page, offset, page_size, D, stride_page)
    k = load_codes(k_ptrs[:, None] + col[None, :], live[:, None] & (col < D)[None, :], DOT)
    sf = load_sf(sf_ptrs, live)
    for query in range(s_q):
        limit = seqlen - (s_q - 1 - query)
        logits = tl.full((BLOCK_N,), float("-inf"), tl.float32)
        if start < limit:
            total = sum_of_heads(
                k, q_ptr + request * stride_qb + query * stride_qj,
                weights_ptr + request * stride_wb + query * stride_wj, H, D, stride_qh, DOT, BLOCK_H,
                INTERPRETED,
            )  # fmt: skip
            logits = tl.where(key < limit, total * sf, float("-inf"))
        row_ptr = logits_ptr + (request * s_q + query) * max_seqlen
        tl.store(row_ptr + key, logits, mask=key < max_seqlen)


def launch(
    q: Tensor,
    cache: Tensor,
    weights: Tensor,
    block_table: Tensor,
    seqlens: Tensor,
    *,
    max_seqlen: int,
    out: tuple[Tensor],
) -> None:
    (logits,) = out
    if logits.numel() == 0:
        return
    B, s_q, H, D = q.shape
    target = _fp8.target_of(q.device)
    p = plan(H, D, s_q, target.interpreted)
    _indexer_logits_paged_kernel[(triton.cdiv(max_seqlen, p.BLOCK_N) * B,)](
        _fp8.codes_argument(q), cache, weights, block_table, seqlens, logits,
        s_q, H, D, max(cache.size(1), 1), max_seqlen, *q.stride()[:3], cache.stride(0),
        *weights.stride()[:2], block_table.stride(0), DOT=dot_dtype(target), BLOCK_N=p.BLOCK_N,
        BLOCK_H=p.BLOCK_H, BLOCK_D=p.BLOCK_D, INTERPRETED=target.interpreted, num_warps=p.num_warps,
    )  # fmt: skip
