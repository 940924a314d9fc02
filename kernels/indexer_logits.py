"""Triton backend of ``indexer_logits``."""

import triton
import triton.language as tl
from moela.kernels import _fp8
from moela.kernels._indexer import dot_dtype, load_codes, plan, sum_of_heads
from torch import Tensor


@triton.jit
def _indexer_logits_kernel(
    q_ptr, k_ptr, sf_k_ptr, weights_ptr, ks_ptr, ke_ptr, logits_ptr,
    T, S, H, D, stride_qt, stride_qh, stride_ks, stride_sf, stride_wt, stride_lt,
    DOT: tl.constexpr, QUERIES: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_N columns of the logits of QUERIES queries, whose keys it loads once.

    Grid: (cdiv(S, BLOCK_N) * cdiv(T, QUERIES),), columns first; either factor may exceed 65535. Invariant: a
    key reaches its own column only, so one that a query does not see may be anything.
    """
    tiles = tl.cdiv(S, BLOCK_N)
    start = tl.program_id(0) % tiles * BLOCK_N
    key = start + tl.arange(0, BLOCK_N)
    col = tl.arange(0, BLOCK_D)
    is_key = key < S
    k_ptrs = k_ptr + key.to(tl.int64)[:, None] * stride_ks + col[None, :]
    k = load_codes(k_ptrs, is_key[:, None] & (col < D)[None, :], DOT)
    sf = tl.load(sf_k_ptr + key.to(tl.int64) * stride_sf, mask=is_key, other=0.0)
    first = tl.program_id(0) // tiles * QUERIES
    for query in range(first, tl.minimum(first + QUERIES, T)):
        begin, end = tl.load(ks_ptr + query), tl.load(ke_ptr + query)
        logits = tl.full((BLOCK_N,), float("-inf"), tl.float32)
        if (start < end) & (start + BLOCK_N > begin):
            t = tl.full((), query, tl.int64)
            total = sum_of_heads(
                k, q_ptr + t * stride_qt, weights_ptr + t * stride_wt, H, D, stride_qh, DOT, BLOCK_H,
                INTERPRETED,
            )  # fmt: skip
            logits = tl.where((begin <= key) & (key < end), total * sf, float("-inf"))
        row_ptr = logits_ptr + tl.full((), query, tl.int64) * stride_lt
        tl.store(row_ptr + key, logits, mask=is_key)


def launch(
    q: Tensor,
    k: Tensor,
    sf_k: Tensor,
    weights: Tensor,
    ks: Tensor,
    ke: Tensor,
    *,
    out: tuple[Tensor],
) -> None:
    (logits,) = out
    if logits.numel() == 0:
        return
    (T, H, D), S = q.shape, k.size(0)
    target = _fp8.target_of(q.device)
    p = plan(H, D, T, target.interpreted)
    _indexer_logits_kernel[(triton.cdiv(S, p.BLOCK_N) * triton.cdiv(T, p.QUERIES),)](
        _fp8.codes_argument(q), _fp8.codes_argument(k), sf_k, weights, ks.contiguous(), ke.contiguous(),
        logits, T, S, H, D, *q.stride()[:2], k.stride(0), sf_k.stride(0), weights.stride(0),
        logits.stride(0), DOT=dot_dtype(target), QUERIES=p.QUERIES, BLOCK_N=p.BLOCK_N, BLOCK_H=p.BLOCK_H,
        BLOCK_D=p.BLOCK_D, INTERPRETED=target.interpreted, num_warps=p.num_warps,
    )  # fmt: skip
