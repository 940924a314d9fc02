"""Triton backend of ``grouped_fp8_gemm``, and of its masked form."""

import torch
import triton
import triton.language as tl
from moela.kernels import _fp8, _gemm, _groups
from moela.kernels.fp8_gemm import plan
from torch import Tensor


@triton.jit
def _grouped_fp8_gemm_kernel(
    a_ptr, sf_a_ptr, b_ptr, sf_b_ptr, rows_ptr, d_ptr,
    E, N, K,
    stride_ae, stride_am, stride_be, stride_bn, stride_de, stride_dm,
    stride_sfa_e, stride_sfa_m, stride_sfa_k, stride_sfb_e, stride_sfb_n, stride_sfb_k,
    MASKED: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    A_IS_FP8: tl.constexpr, SF_B_IS_E8M0: tl.constexpr,
    DOT: tl.constexpr, USE_TMA: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Each program takes every num_programs-th tile of fp8_gemm of each expert.

    Grid: num_programs(). rows_ptr: expert_offsets, with a and d as a batch of one, or, MASKED, expert_counts.
    Invariant: a row at or beyond the end of its expert's rows is stored by no tile of it, wherever the tile
    ends.
    """
    tiles_n = tl.cdiv(N, BLOCK_N)
    num_tiles = tiles_n * tl.sum(_groups.count_tiles(rows_ptr, E, MASKED, BLOCK_E, BLOCK_M), 0)
    for tile in range(tl.program_id(0), num_tiles, tl.num_programs(0)):
        expert, first_m, end_m, tile_n = _groups.find_tile(
            tile, tiles_n, rows_ptr, E, MASKED, BLOCK_E, BLOCK_M, GROUP_M
        )
        expert = expert.to(tl.int64)
        batch = expert if MASKED else expert * 0
        acc = _gemm.fp8_tile(
            a_ptr if USE_TMA else a_ptr + batch * stride_ae,
            sf_a_ptr + batch * stride_sfa_e if A_IS_FP8 else sf_a_ptr,
            b_ptr if USE_TMA else b_ptr + expert * stride_be,
            sf_b_ptr + expert * stride_sfb_e,
            batch.to(tl.int32), first_m, end_m, expert.to(tl.int32), tile_n, N, K,
            stride_am, stride_bn, stride_sfa_m, stride_sfa_k, stride_sfb_n, stride_sfb_k,
            BLOCK_M, BLOCK_N, BLOCK_K, A_IS_FP8, SF_B_IS_E8M0, DOT, USE_TMA, INTERPRETED,
        )  # fmt: skip
        m = first_m.to(tl.int64) + tl.arange(0, BLOCK_M)  # [BLOCK_M]
        n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
        _gemm.store_tile(d_ptr + batch * stride_de, acc, m, m < end_m, n, n < N, stride_dm, INTERPRETED)


def launch_experts(
    a: Tensor, sf_a: Tensor | None, b: Tensor, sf_b: Tensor, rows: Tensor, d: Tensor, masked: bool
) -> None:
    """a [batch, M, K], sf_a [batch, M, ...] and d [batch, M, N]; a batch of one unless masked."""
    E, N, K = b.shape
    if d.numel() == 0 or E == 0:
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
    tiles_n = triton.cdiv(N, p.BLOCK_N)
    grid = (_groups.num_programs(a.size(0) * a.size(1), E, p.BLOCK_M, tiles_n, target.multiprocessors),)
    _grouped_fp8_gemm_kernel[grid](
        _gemm.descriptor(a, [p.BLOCK_M, p.BLOCK_K]) if use_tma else a,
        sf_a,
        _gemm.descriptor(b, [p.BLOCK_N, p.BLOCK_K]) if use_tma else b,
        sf_b, rows, d,
        E, N, K,
        a.stride(0), a.stride(1), b.stride(0), b.stride(1), d.stride(0), d.stride(1),
        *(sf_a.stride() if is_fp8 else (0, 0, 0)), *sf_b.stride(),
        MASKED=masked, BLOCK_E=triton.next_power_of_2(E),
        BLOCK_M=p.BLOCK_M, BLOCK_N=p.BLOCK_N, BLOCK_K=p.BLOCK_K, GROUP_M=p.GROUP_M,
        A_IS_FP8=is_fp8, SF_B_IS_E8M0=sf_b.dtype == torch.uint8,
        DOT=dot, USE_TMA=use_tma, INTERPRETED=target.interpreted,
        num_warps=p.num_warps, num_stages=p.num_stages,
    )  # fmt: skip


def launch(
    a: Tensor,
    sf_a: Tensor | None,
    b: Tensor,
    sf_b: Tensor,
    expert_offsets: Tensor,
    *,
    out_dtype: torch.dtype = torch.bfloat16,
    out: tuple[Tensor],
) -> None:
    sf_rows = None if sf_a is None else sf_a[None]
    launch_experts(a[None], sf_rows, b, sf_b, expert_offsets, out[0][None], masked=False)
