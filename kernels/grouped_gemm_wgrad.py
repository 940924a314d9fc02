"""Triton backend of ``grouped_gemm_wgrad``."""

from dataclasses import dataclass

import triton
import triton.language as tl
from moela.kernels import _fp8, _gemm
from torch import Tensor


@dataclass(frozen=True)
class Plan:
    BLOCK_N: int
    BLOCK_K: int
    BLOCK_M: int  # rows that are loaded and multiplied at once
    GROUP_N: int  # tiles along N that run side by side on one along K, so that a stays in L2
    num_warps: int
    num_stages: int


def plan(dot: tl.dtype, target: _fp8.Target) -> Plan:
    if target.interpreted:  # its time is programs, not flops
        return Plan(BLOCK_N=128, BLOCK_K=128, BLOCK_M=128, GROUP_N=8, num_warps=4, num_stages=1)
    if dot == tl.float32:  # multiplied outside the tensor cores, with all operands of a step in registers
        return Plan(BLOCK_N=64, BLOCK_K=32, BLOCK_M=32, GROUP_N=8, num_warps=8, num_stages=2)
    return Plan(BLOCK_N=128, BLOCK_K=128, BLOCK_M=64, GROUP_N=8, num_warps=8, num_stages=3)


@triton.jit
def _grouped_gemm_wgrad_kernel(
    grad_ptr, a_ptr, offsets_ptr, grad_b_ptr,
    N, K,
    stride_gm, stride_am,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr, GROUP_N: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One program owns one [BLOCK_N, BLOCK_K] tile of one expert's gradient and walks its rows in order.

    Grid: E * cdiv(N, BLOCK_N) * cdiv(K, BLOCK_K). Invariant: rows of other experts are masked in both loads,
    because 0 * NaN is NaN; an expert without rows stores the zeros that its sum begins with.
    """
    tiles_n, tiles_k = tl.cdiv(N, BLOCK_N), tl.cdiv(K, BLOCK_K)
    expert = tl.program_id(0) // (tiles_n * tiles_k)
    tile_n, tile_k = _gemm.raster(tl.program_id(0) % (tiles_n * tiles_k), tiles_n, tiles_k, GROUP_N)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    k = tile_k * BLOCK_K + tl.arange(0, BLOCK_K)  # [BLOCK_K]
    end = tl.load(offsets_ptr + expert + 1)
    acc = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for start in range(tl.load(offsets_ptr + expert), end, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M).to(tl.int64)[:, None]  # [BLOCK_M, 1]
        grad = tl.load(grad_ptr + m * stride_gm + n[None, :], mask=(m < end) & (n < N)[None, :], other=0.0)
        a = tl.load(a_ptr + m * stride_am + k[None, :], mask=(m < end) & (k < K)[None, :], other=0.0)
        acc = _gemm.dot(grad.T, a, acc, INTERPRETED)
    row = expert.to(tl.int64) * N + n  # [BLOCK_N] of the rows of all experts
    _gemm.store_tile(grad_b_ptr, acc, row, n < N, k, k < K, K, INTERPRETED)


def launch(grad: Tensor, a: Tensor, expert_offsets: Tensor, *, out: tuple[Tensor]) -> None:
    (grad_b,) = out
    if grad_b.numel() == 0:
        return
    E, N, K = grad_b.shape
    target = _fp8.target_of(a.device)
    p = plan(_gemm.dot_dtype(a.dtype, target), target)
    _grouped_gemm_wgrad_kernel[(E * triton.cdiv(N, p.BLOCK_N) * triton.cdiv(K, p.BLOCK_K),)](
        grad, a, expert_offsets, grad_b,
        N, K,
        grad.stride(0), a.stride(0),
        BLOCK_N=p.BLOCK_N, BLOCK_K=p.BLOCK_K, BLOCK_M=p.BLOCK_M, GROUP_N=p.GROUP_N,
        INTERPRETED=target.interpreted, num_warps=p.num_warps, num_stages=p.num_stages,
    )  # fmt: skip
