"""Triton backend of ``fp8_gemm``: one kernel for FP8 and weight-only, by pointers or tensor descriptors."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from moela.kernels import _fp8, _gemm
from torch import Tensor


@dataclass(frozen=True)
class Plan:
    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int  # columns of K that are loaded and multiplied at once
    GROUP_M: int  # row tiles that run side by side on one column tile, so that b stays in L2
    num_warps: int
    num_stages: int


def plan(N: int, dot: tl.dtype, target: _fp8.Target) -> Plan:
    """Pick a tile. M is not an argument, so that a row's result cannot depend on its batch.

    tests/sass holds what the tile and the number of warps are for: no spill, and shared memory that fits.
    """
    if target.interpreted:  # its time is programs, not flops
        return Plan(BLOCK_M=128, BLOCK_N=128, BLOCK_K=128, GROUP_M=8, num_warps=4, num_stages=1)
    if dot == tl.float32:  # multiplied outside the tensor cores, with all operands of a step in registers
        return Plan(BLOCK_M=64, BLOCK_N=32, BLOCK_K=32, GROUP_M=8, num_warps=8, num_stages=2)
    return Plan(
        BLOCK_M=64,
        BLOCK_N=128 if N >= 128 and target.fp8 else 64,
        BLOCK_K=128,
        GROUP_M=8,
        num_warps=8,
        num_stages=4 if target.tma else 3,
    )


@triton.jit
def _fp8_gemm_kernel(
    a_ptr, sf_a_ptr, b_ptr, sf_b_ptr, bias_ptr, d_ptr,
    M, N, K,
    stride_am, stride_bn, stride_dm, stride_sfa_m, stride_sfa_k, stride_sfb_n, stride_sfb_k,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    A_IS_FP8: tl.constexpr, SF_B_IS_E8M0: tl.constexpr, HAS_BIAS: tl.constexpr,
    DOT: tl.constexpr, USE_TMA: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One program owns one [BLOCK_M, BLOCK_N] tile of d and walks K in order, 128 columns at a time.

    Grid: cdiv(M, BLOCK_M) * cdiv(N, BLOCK_N), raster by groups of GROUP_M row tiles.
    """
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    tile_m, tile_n = _gemm.raster(tl.program_id(0), tiles_m, tiles_n, GROUP_M)
    acc = _gemm.fp8_tile(
        a_ptr, sf_a_ptr, b_ptr, sf_b_ptr,
        0, tile_m * BLOCK_M, M, 0, tile_n, N, K,
        stride_am, stride_bn, stride_sfa_m, stride_sfa_k, stride_sfb_n, stride_sfb_k,
        BLOCK_M, BLOCK_N, BLOCK_K, A_IS_FP8, SF_B_IS_E8M0, DOT, USE_TMA, INTERPRETED,
    )  # fmt: skip
    m = tile_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    if HAS_BIAS:
        acc += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    _gemm.store_tile(d_ptr, acc, m, m < M, n, n < N, stride_dm, INTERPRETED)


def launch(
    a: Tensor,
    sf_a: Tensor | None,
    b: Tensor,
    sf_b: Tensor,
    *,
    bias: Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    out: tuple[Tensor],
) -> None:
    (d,) = out
    (M, K), N = a.shape, b.size(0)
    if d.numel() == 0:
        return
    target = _fp8.target_of(a.device)
    is_fp8 = a.dtype == torch.float8_e4m3fn
    dot = _gemm.dot_dtype(a.dtype, target)
    p = plan(N, dot, target)
    if dot != tl.float8e4nv:
        b = _fp8.codes_argument(b)
        a = _fp8.codes_argument(a) if is_fp8 else a
    use_tma = target.tma and _gemm.fits_tma(a) and _gemm.fits_tma(b)
    sf_b = _fp8.sf_argument(sf_b)
    grid = (triton.cdiv(M, p.BLOCK_M) * triton.cdiv(N, p.BLOCK_N),)
    _fp8_gemm_kernel[grid](
        _gemm.descriptor(a[None], [p.BLOCK_M, p.BLOCK_K]) if use_tma else a,
        sf_a,
        _gemm.descriptor(b[None], [p.BLOCK_N, p.BLOCK_K]) if use_tma else b,
        sf_b, bias, d,
        M, N, K,
        a.stride(0), b.stride(0), d.stride(0),
        sf_a.stride(0) if is_fp8 else 0, sf_a.stride(1) if is_fp8 else 0, sf_b.stride(0), sf_b.stride(1),
        BLOCK_M=p.BLOCK_M, BLOCK_N=p.BLOCK_N, BLOCK_K=p.BLOCK_K, GROUP_M=p.GROUP_M,
        A_IS_FP8=is_fp8, SF_B_IS_E8M0=sf_b.dtype == torch.uint8, HAS_BIAS=bias is not None,
        DOT=dot, USE_TMA=use_tma, INTERPRETED=target.interpreted,
        num_warps=p.num_warps, num_stages=p.num_stages,
    )  # fmt: skip
