"""Triton backend of ``fused_experts``: the ops that it is made of, one after the other, without the host.

Rows are sorted by expert, so that each product is one grouped GEMM. What an op in between runs on is its own
choice, so a compiled kernel is used where there is one; `use_backend("triton")` keeps all of it in Triton.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from moela import backends
from moela.kernels import _fp8, moe_permute
from moela.ops import SPECS, _spec
from torch import Tensor

BLOCK = 128  # columns that share a scale factor


@dataclass(frozen=True)
class Plan:
    """Of the kernel that adds biases."""

    BLOCK_M: int
    BLOCK_N: int
    num_warps: int


def plan(interpreted: bool) -> Plan:
    """A piece of one row. The interpreter's time is programs, so it gets many rows in each."""
    return Plan(BLOCK_M=64 if interpreted else 1, BLOCK_N=1024, num_warps=4)


@triton.jit
def _sort_ids_kernel(
    ids_ptr, weights_ptr, sorted_ids_ptr, sorted_weights_ptr,
    T, topk, num_experts, stride_it, stride_ik, stride_wt, stride_wk,
    BLOCK_T: tl.constexpr, TOPK: tl.constexpr,
):  # fmt: skip
    """One program sorts the ids of BLOCK_T tokens, and their weights with them: moe_unpermute adds in order.

    Grid: (cdiv(T, BLOCK_T),). An id outside becomes num_experts. A slot's place is the number of slots with a
    smaller id, or the same and before it, so no two have one place. Invariant: a slot at or beyond topk has
    an id above all others, and is not stored.
    """
    t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)[:, None]  # [BLOCK_T, 1]
    slot = tl.arange(0, TOPK)[None, :]  # [1, TOPK]
    mask = (t < T) & (slot < topk)
    ids = tl.load(ids_ptr + t * stride_it + slot * stride_ik, mask=mask, other=0)
    ids = tl.where((ids >= 0) & (ids < num_experts), ids, num_experts).to(tl.int32)
    ids = tl.where(mask, ids, num_experts + 1)
    weights = tl.load(weights_ptr + t * stride_wt + slot * stride_wk, mask=mask, other=0.0)
    place = tl.zeros([BLOCK_T, TOPK], dtype=tl.int32)
    for other in range(topk):
        live = t < T
        theirs = tl.load(ids_ptr + t * stride_it + other * stride_ik, mask=live, other=0)
        theirs = tl.where((theirs >= 0) & (theirs < num_experts), theirs, num_experts).to(tl.int32)
        place += ((theirs < ids) | ((theirs == ids) & (other < slot))).to(tl.int32)
    tl.store(sorted_ids_ptr + t * topk + place, ids, mask=mask)
    tl.store(sorted_weights_ptr + t * topk + place, weights, mask=mask)


@triton.jit
def _add_bias_kernel(
    d_ptr, bias_ptr, offsets_ptr,
    E, N, stride_be,
    BLOCK_E: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One program adds their experts' biases to a [BLOCK_M, BLOCK_N] tile of d, float32 and contiguous.

    Grid: (cdiv(M, BLOCK_M), cdiv(N, BLOCK_N)). Invariant: a row of no expert is left as it is, as is one
    beyond the last, whose expert there is not either.
    """
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    experts = tl.arange(0, BLOCK_E)
    ends = tl.load(offsets_ptr + 1 + experts, mask=experts < E, other=2**31 - 1)
    expert = tl.sum((ends[None, :] <= m[:, None]).to(tl.int32), 1).to(tl.int64)  # [BLOCK_M]
    mask = (expert < E)[:, None] & (n < N)[None, :]
    bias = tl.load(bias_ptr + expert[:, None] * stride_be + n[None, :], mask=mask, other=0.0)
    d_ptrs = d_ptr + m[:, None].to(tl.int64) * N + n[None, :]
    tl.store(d_ptrs, tl.load(d_ptrs, mask=mask) + _fp8.to_float32(bias, INTERPRETED), mask=mask)


def sort_ids(topk_ids: Tensor, topk_weights: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """Both with the ids of each token ascending; ids outside become num_experts, and come last."""
    T, topk = topk_ids.shape
    ids = torch.empty(T, topk, dtype=torch.int32, device=topk_ids.device)
    weights = torch.empty(T, topk, dtype=torch.float32, device=topk_ids.device)
    block_t = 64
    _sort_ids_kernel[(triton.cdiv(T, block_t),)](
        topk_ids, topk_weights, ids, weights,
        T, topk, num_experts, *topk_ids.stride(), *topk_weights.stride(),
        BLOCK_T=block_t, TOPK=triton.next_power_of_2(topk), num_warps=4,
    )  # fmt: skip
    return ids, weights


def add_bias(d: Tensor, bias: Tensor, expert_offsets: Tensor) -> None:
    """d[r] += bias[e] for the rows r of each expert e; in place."""
    (M, N), E = d.shape, bias.size(0)
    interpreted = _fp8.target_of(d.device).interpreted
    p = plan(interpreted)
    _add_bias_kernel[(triton.cdiv(M, p.BLOCK_M), triton.cdiv(N, p.BLOCK_N))](
        d, bias, expert_offsets,
        E, N, bias.stride(0),
        BLOCK_E=triton.next_power_of_2(E), BLOCK_M=p.BLOCK_M, BLOCK_N=p.BLOCK_N,
        INTERPRETED=interpreted, num_warps=p.num_warps,
    )  # fmt: skip


def run(op: str, *args: Any, out: tuple[Tensor, ...], **kwargs: Any) -> None:
    """An op into `out`, on the backend that it is picked for."""
    backends.launcher(_spec.pick_for(SPECS[op], args, kwargs), op)(*args, **kwargs, out=out)


def product(
    a: Tensor,
    sf_a: Tensor | None,
    w: Tensor,
    sf_w: Tensor | None,
    bias: Tensor | None,
    offsets: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """[R, K] by experts' [E, N, K] -> [R, N] of `dtype`, or float32 with a bias: that is added before any
    rounding. Rows of no expert are not written."""
    d = torch.empty(a.size(0), w.size(1), dtype=dtype if bias is None else torch.float32, device=a.device)
    if sf_w is None:
        run("grouped_gemm", a, w, offsets, out=(d,))
    else:
        run("grouped_fp8_gemm", a, sf_a, w, sf_w, offsets, out_dtype=d.dtype, out=(d,))
    if bias is not None and d.numel():
        add_bias(d, bias, offsets)
    return d


def quantized(op: str, x: Tensor, K: int, **options: Any) -> tuple[Tensor, Tensor]:
    """What an op that casts to FP8 makes of the rows of x."""
    q = torch.empty(x.size(0), K, dtype=torch.float8_e4m3fn, device=x.device)
    sf = torch.empty(x.size(0), triton.cdiv(K, BLOCK), dtype=torch.float32, device=x.device)
    run(op, x, **options, out=(q, sf))
    return q, sf


def launch(
    x: Tensor,
    w13: Tensor,
    w2: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    *,
    sf_w13: Tensor | None = None,
    sf_w2: Tensor | None = None,
    b13: Tensor | None = None,
    b2: Tensor | None = None,
    activation: str = "silu",
    limit: float | None = None,
    alpha: float | None = None,
    quantize_activations: str | None = None,
    out: tuple[Tensor],
) -> None:
    (result,) = out
    E, H, I = w2.shape
    R = topk_ids.numel()
    if R == 0 or E == 0 or H == 0:
        result.zero_()
        return
    ids, weights = sort_ids(topk_ids, topk_weights, E)
    cast = {"group_size": BLOCK, "ue8m0": quantize_activations == "fp8_ue8m0"}
    a, sf_a = x, None
    if quantize_activations:
        a, sf_a = quantized("per_token_group_quant_fp8", x, H, **cast)

    offsets = torch.empty(E + 1, dtype=torch.int32, device=x.device)
    inverse = torch.empty_like(ids)
    a_sorted = torch.empty(R, H, dtype=a.dtype, device=x.device)
    run("moe_permute", a, ids, E, out=(a_sorted, offsets, inverse))
    if sf_a is not None:
        sf_sorted = torch.empty(R, sf_a.size(1), dtype=sf_a.dtype, device=x.device)
        moe_permute.copy_rows(sf_a, inverse, offsets, sf_sorted)
        sf_a = sf_sorted

    gate_up = product(a_sorted, sf_a, w13, sf_w13, b13, offsets, x.dtype)  # [R, 2 * I]
    if quantize_activations:
        options = {"limit": limit, "alpha": alpha}
        h, sf_h = quantized("silu_and_mul_quant_fp8", gate_up, I, **options, **cast)
    else:
        h, sf_h = torch.empty(R, I, dtype=x.dtype, device=x.device), None
        run("silu_and_mul", gate_up, limit=limit, alpha=alpha, out=(h,))
    y = product(h, sf_h, w2, sf_w2, b2, offsets, x.dtype)  # [R, H]
    run("moe_unpermute", y, weights, inverse, out=out)
