"""Triton backend of ``fp8_gemm``: one kernel for FP8 and weight-only, by pointers or tensor descriptors."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from moela.kernels import _fp8
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor


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
    DOT is the type that the tensor core multiplies: e4m3, or the type of a, or float16 for e4m3 on a target
    without it. Invariant: BLOCK_K divides 128, so 128 columns, which share a column of sf_a and an element of
    sf_b, are whole steps; BLOCK_N divides 128, so a tile never straddles two scale rows of b. With USE_TMA
    a_ptr and b_ptr are descriptors, which read zeros beyond the ends; else masks do.
    """
    tl.static_assert(128 % BLOCK_K == 0, "a step must not straddle two scale factors")
    tl.static_assert(128 % BLOCK_N == 0, "a tile must not straddle two scale rows of b")
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    pid = tl.program_id(0)
    group = pid // (GROUP_M * tiles_n)
    rows_in_group = tl.minimum(tiles_m - group * GROUP_M, GROUP_M)
    tile_m = group * GROUP_M + pid % (GROUP_M * tiles_n) % rows_in_group
    tile_n = pid % (GROUP_M * tiles_n) // rows_in_group

    m = tile_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    n = tile_n.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    live_m, live_n = m < M, n < N
    sf_b_ptrs = sf_b_ptr + (tile_n * BLOCK_N // 128) * stride_sfb_n

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for block in range(tl.cdiv(K, 128)):
        product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for part in tl.static_range(128 // BLOCK_K):
            start = block * 128 + part * BLOCK_K
            if USE_TMA:
                a = a_ptr.load([tile_m * BLOCK_M, start])  # [BLOCK_M, BLOCK_K]
                b = b_ptr.load([tile_n * BLOCK_N, start])  # [BLOCK_N, BLOCK_K]
            else:
                k = start + tl.arange(0, BLOCK_K)[None, :]  # [1, BLOCK_K]
                live_k = k < K
                # 0.0, because Triton cannot cast an integer to e4m3.
                a = tl.load(a_ptr + m[:, None] * stride_am + k, mask=live_m[:, None] & live_k, other=0.0)
                b = tl.load(b_ptr + n[:, None] * stride_bn + k, mask=live_n[:, None] & live_k, other=0.0)
            if DOT != tl.float8e4nv:
                b = _fp8.decode_e4m3(b, DOT)
                if A_IS_FP8:
                    a = _fp8.decode_e4m3(a, DOT)
            if INTERPRETED:
                # Its bfloat16 dot is wrong, and its float32 one is numpy's, where a row's bits depend
                # on its place.
                a, b = _fp8.to_float32(a, INTERPRETED), _fp8.to_float32(b, INTERPRETED)
                product += tl.dot(a.to(tl.float64), b.to(tl.float64).T).to(tl.float32)
            else:
                product = tl.dot(a, b.T, product, input_precision="ieee")
        sf_b = _fp8.load_sf(sf_b_ptrs + block * stride_sfb_k, SF_B_IS_E8M0)
        if A_IS_FP8:
            sf_a = tl.load(sf_a_ptr + m * stride_sfa_m + block * stride_sfa_k, mask=live_m, other=0.0)
            acc += product * (sf_a * sf_b)[:, None]
        else:
            acc += product * sf_b

    if HAS_BIAS:
        acc += tl.load(bias_ptr + n, mask=live_n, other=0.0).to(tl.float32)[None, :]
    d = _fp8.round_to(acc, d_ptr.dtype.element_ty, INTERPRETED)
    tl.store(d_ptr + m[:, None] * stride_dm + n[None, :], d, mask=live_m[:, None] & live_n[None, :])


DOT_DTYPE = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


def dot_dtype(a_dtype: torch.dtype, target: _fp8.Target) -> tl.dtype:
    """The type that the tensor core multiplies; each holds every value of its operands."""
    if a_dtype == torch.float8_e4m3fn:
        return tl.float8e4nv if target.fp8 else tl.float16
    return DOT_DTYPE[a_dtype]


def fits_tma(t: Tensor) -> bool:
    """Tensor descriptors want 16-byte aligned rows that are not empty."""
    return t.numel() > 0 and t.data_ptr() % 16 == 0 and t.stride(0) * t.element_size() % 16 == 0


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
    dot = dot_dtype(a.dtype, target)
    p = plan(N, dot, target)
    if dot != tl.float8e4nv:
        b = _fp8.codes_argument(b)
        a = _fp8.codes_argument(a) if is_fp8 else a
    use_tma = target.tma and fits_tma(a) and fits_tma(b)
    sf_b = _fp8.sf_argument(sf_b)
    grid = (triton.cdiv(M, p.BLOCK_M) * triton.cdiv(N, p.BLOCK_N),)
    _fp8_gemm_kernel[grid](
        TensorDescriptor.from_tensor(a, [p.BLOCK_M, p.BLOCK_K]) if use_tma else a,
        sf_a,
        TensorDescriptor.from_tensor(b, [p.BLOCK_N, p.BLOCK_K]) if use_tma else b,
        sf_b, bias, d,
        M, N, K,
        a.stride(0), b.stride(0), d.stride(0),
        sf_a.stride(0) if is_fp8 else 0, sf_a.stride(1) if is_fp8 else 0, sf_b.stride(0), sf_b.stride(1),
        BLOCK_M=p.BLOCK_M, BLOCK_N=p.BLOCK_N, BLOCK_K=p.BLOCK_K, GROUP_M=p.GROUP_M,
        A_IS_FP8=is_fp8, SF_B_IS_E8M0=sf_b.dtype == torch.uint8, HAS_BIAS=bias is not None,
        DOT=dot, USE_TMA=use_tma, INTERPRETED=target.interpreted,
        num_warps=p.num_warps, num_stages=p.num_stages,
    )  # fmt: skip
