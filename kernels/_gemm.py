"""What the GEMM kernels share: the order of tiles, the walk over K of one tile, its store, descriptors."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from moela.kernels import _fp8
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor


@triton.jit
def raster(tile, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    """(tile_m, tile_n): GROUP_M row tiles run side by side on one column tile, so that b stays in L2."""
    group = tile // (GROUP_M * tiles_n)
    rows_in_group = tl.minimum(tiles_m - group * GROUP_M, GROUP_M)
    tile_m = group * GROUP_M + tile % (GROUP_M * tiles_n) % rows_in_group
    return tile_m, tile % (GROUP_M * tiles_n) // rows_in_group


@triton.jit
def fp8_tile(
    a_ptr, sf_a_ptr, b_ptr, sf_b_ptr,
    batch_a, first_m, end_m, batch_b, tile_n, N, K,
    stride_am, stride_bn, stride_sfa_m, stride_sfa_k, stride_sfb_n, stride_sfb_k,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    A_IS_FP8: tl.constexpr, SF_B_IS_E8M0: tl.constexpr,
    DOT: tl.constexpr, USE_TMA: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """[BLOCK_M, BLOCK_N] float32: rows first_m ... of a times column tile tile_n of b, along K in order.

    DOT is the type that the tensor core multiplies: e4m3, or the type of a, or float16 for e4m3 on a target
    without it. Invariant: BLOCK_K divides 128, so 128 columns, which share a column of sf_a and an element of
    sf_b, are whole steps; BLOCK_N divides 128, so a tile never straddles two scale rows of b. Pointers are
    those of the matrices of this tile, and rows from end_m on are not read. With USE_TMA a_ptr and b_ptr are
    descriptors of [batch, rows, K], which read zeros beyond the ends of these; rows from end_m on hold what
    is there, and no row of the tile depends on another.
    """
    tl.static_assert(128 % BLOCK_K == 0, "a step must not straddle two scale factors")
    tl.static_assert(128 % BLOCK_N == 0, "a tile must not straddle two scale rows of b")
    m = first_m.to(tl.int64) + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    n = tile_n.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    live_m, live_n = m < end_m, n < N
    sf_b_ptrs = sf_b_ptr + (tile_n * BLOCK_N // 128) * stride_sfb_n

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for block in range(tl.cdiv(K, 128)):
        product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for part in tl.static_range(128 // BLOCK_K):
            start = block * 128 + part * BLOCK_K
            if USE_TMA:
                a = a_ptr.load([batch_a, first_m, start]).reshape(BLOCK_M, BLOCK_K)
                b = b_ptr.load([batch_b, tile_n * BLOCK_N, start]).reshape(BLOCK_N, BLOCK_K)
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
            product = dot(a, b.T, product, INTERPRETED)
        sf_b = _fp8.load_sf(sf_b_ptrs + block * stride_sfb_k, SF_B_IS_E8M0)
        if A_IS_FP8:
            sf_a = tl.load(sf_a_ptr + m * stride_sfa_m + block * stride_sfa_k, mask=live_m, other=0.0)
            acc += product * (sf_a * sf_b)[:, None]
        else:
            acc += product * sf_b
    return acc


@triton.jit
def dot(a, b, acc, INTERPRETED: tl.constexpr):
    """acc + a @ b in float32."""
    if INTERPRETED:
        # Its bfloat16 dot is wrong, and its float32 one is numpy's, where a row's bits depend on its place.
        a, b = _fp8.to_float32(a, INTERPRETED), _fp8.to_float32(b, INTERPRETED)
        return acc + tl.dot(a.to(tl.float64), b.to(tl.float64)).to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def store_tile(d_ptr, acc, m, live_m, n, live_n, stride_dm, INTERPRETED: tl.constexpr):
    """The one rounding, and nothing written where a row or a column is not live."""
    d = _fp8.round_to(acc, d_ptr.dtype.element_ty, INTERPRETED)
    tl.store(d_ptr + m[:, None] * stride_dm + n[None, :], d, mask=live_m[:, None] & live_n[None, :])


DOT_DTYPE = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


def dot_dtype(a_dtype: torch.dtype, target: _fp8.Target) -> tl.dtype:
    """The type that the tensor core multiplies; each holds every value of its operands."""
    if a_dtype == torch.float8_e4m3fn:
        return tl.float8e4nv if target.fp8 else tl.float16
    return DOT_DTYPE[a_dtype]


def fits_tma(t: Tensor) -> bool:
    """Tensor descriptors want a contiguous last dimension, the others in steps of 16 bytes, and no empty
    tensor."""
    steps = [t.data_ptr(), *(s * t.element_size() for s in t.stride()[:-1])]
    return t.numel() > 0 and t.stride(-1) == 1 and all(s % 16 == 0 for s in steps)


def descriptor(t: Tensor, block: Sequence[int]) -> TensorDescriptor:
    """Of tiles of one matrix of a batch."""
    return TensorDescriptor.from_tensor(t, [1, *block])
