"""Triton backend of ``grouped_gemm``."""

from dataclasses import dataclass

import triton
import triton.language as tl
from moela.kernels import _fp8, _gemm, _groups
from torch import Tensor


@dataclass(frozen=True)
class Plan:
    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    GROUP_M: int  # row tiles that run side by side on one column tile, so that b stays in L2
    num_warps: int
    num_stages: int


def plan(dot: tl.dtype, target: _fp8.Target) -> Plan:
    """Pick a tile. No size is an argument, so that a row's result cannot depend on its group."""
    if target.interpreted:  # its time is programs, not flops
        return Plan(BLOCK_M=128, BLOCK_N=128, BLOCK_K=128, GROUP_M=8, num_warps=4, num_stages=1)
    if dot == tl.float32:  # multiplied outside the tensor cores, with all operands of a step in registers
        return Plan(BLOCK_M=64, BLOCK_N=32, BLOCK_K=32, GROUP_M=8, num_warps=8, num_stages=2)
    block_k = 64 if target.tma else 32  # without descriptors addresses fill the registers
    return Plan(BLOCK_M=128, BLOCK_N=128, BLOCK_K=block_k, GROUP_M=8, num_warps=8, num_stages=4)


@triton.jit
def _grouped_gemm_kernel(
    a_ptr, b_ptr, offsets_ptr, d_ptr,
    E, N, K,
    stride_am, stride_be, stride_bn, stride_bk, stride_dm,
    BLOCK_E: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr, B_IS_N_MAJOR: tl.constexpr, USE_TMA: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Each program takes every num_programs-th [BLOCK_M, BLOCK_N] tile and walks K in order.

    Grid: num_programs(). Invariant: a row at or beyond the end of its expert's rows is stored by no tile of
    it. With USE_TMA a_ptr and b_ptr are descriptors, of [1, M, K] and of [E, N, K] or, B_IS_N_MAJOR,
    [E, K, N]; they read zeros beyond M, N and K.
    """
    tiles_n = tl.cdiv(N, BLOCK_N)
    num_tiles = tiles_n * tl.sum(_groups.count_tiles(offsets_ptr, E, False, BLOCK_E, BLOCK_M), 0)
    for tile in range(tl.program_id(0), num_tiles, tl.num_programs(0)):
        expert, first_m, end_m, tile_n = _groups.find_tile(
            tile, tiles_n, offsets_ptr, E, False, BLOCK_E, BLOCK_M, GROUP_M
        )
        m = first_m.to(tl.int64) + tl.arange(0, BLOCK_M)  # [BLOCK_M]
        n = tile_n.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for start in range(0, K, BLOCK_K):
            if USE_TMA:
                a = a_ptr.load([0, first_m, start]).reshape(BLOCK_M, BLOCK_K)
                if B_IS_N_MAJOR:
                    b = b_ptr.load([expert, start, tile_n * BLOCK_N]).reshape(BLOCK_K, BLOCK_N)
                else:
                    b = b_ptr.load([expert, tile_n * BLOCK_N, start]).reshape(BLOCK_N, BLOCK_K).T
            else:
                k = start + tl.arange(0, BLOCK_K).to(tl.int64)  # [BLOCK_K]
                a_ptrs = a_ptr + m[:, None] * stride_am + k[None, :]
                b_ptrs = (
                    b_ptr + expert.to(tl.int64) * stride_be + k[:, None] * stride_bk + n[None, :] * stride_bn
                )
                a = tl.load(a_ptrs, mask=(m < end_m)[:, None] & (k < K)[None, :], other=0.0)
                b = tl.load(b_ptrs, mask=(k < K)[:, None] & (n < N)[None, :], other=0.0)
            acc = _gemm.dot(a, b, acc, INTERPRETED)
        _gemm.store_tile(d_ptr, acc, m, m < end_m, n, n < N, stride_dm, INTERPRETED)


def launch(a: Tensor, b: Tensor, expert_offsets: Tensor, *, out: tuple[Tensor]) -> None:
    (d,) = out
    E, N, K = b.shape
    if d.numel() == 0 or E == 0:
        return
    target = _fp8.target_of(a.device)
    p = plan(_gemm.dot_dtype(a.dtype, target), target)
    is_n_major = b.stride(2) != 1 and K > 1
    rows_of_b, block_b = (b.mT, [p.BLOCK_K, p.BLOCK_N]) if is_n_major else (b, [p.BLOCK_N, p.BLOCK_K])
    use_tma = target.tma and _gemm.fits_tma(a[None]) and _gemm.fits_tma(rows_of_b)
    tiles_n = triton.cdiv(N, p.BLOCK_N)
    grid = (_groups.num_programs(a.size(0), E, p.BLOCK_M, tiles_n, target.multiprocessors),)
    _grouped_gemm_kernel[grid](
        _gemm.descriptor(a[None], [p.BLOCK_M, p.BLOCK_K]) if use_tma else a,
        _gemm.descriptor(rows_of_b, block_b) if use_tma else b,
        expert_offsets, d,
        E, N, K,
        a.stride(0), b.stride(0), b.stride(1), b.stride(2), d.stride(0),
        BLOCK_E=triton.next_power_of_2(E), BLOCK_M=p.BLOCK_M, BLOCK_N=p.BLOCK_N, BLOCK_K=p.BLOCK_K,
        GROUP_M=p.GROUP_M, B_IS_N_MAJOR=is_n_major, USE_TMA=use_tma, INTERPRETED=target.interpreted,
        num_warps=p.num_warps, num_stages=p.num_stages,
    )  # fmt: skip
