"""Tiles of latents in registers, from rows of any format: what the kernels of latent attention share.

BYTES is 0 for rows of floats; for rows of bytes it is what their addresses are multiples of, 4 or 1.
"""

import torch
import triton
import triton.language as tl
from moela.kernels import _fp8


@triton.jit
def _load_bytes(ptrs, COUNT: tl.constexpr, mask, BYTES: tl.constexpr):
    """COUNT bytes, 2 or 4, as the low ones of a uint32."""
    if BYTES == 4:
        WIDE: tl.constexpr = tl.uint32 if COUNT == 4 else tl.uint16
        return tl.load(ptrs.to(tl.pointer_type(WIDE)), mask=mask, other=0).to(tl.uint32)
    bits = tl.load(ptrs, mask=mask, other=0).to(tl.uint32)
    for i in tl.static_range(1, COUNT):
        bits |= tl.load(ptrs + i, mask=mask, other=0).to(tl.uint32) << (8 * i)
    return bits


@triton.jit
def _load_latent(row_ptrs, live, col, L: tl.constexpr, BYTES: tl.constexpr, DOT: tl.constexpr):
    """[BLOCK_N, BLOCK_L] of DOT: zeros in rows that are not live and in columns from L on."""
    kept = live[:, None] & (col < L)[None, :]
    tile = tl.load(row_ptrs[:, None] + col[None, :], mask=kept, other=0)
    if BYTES:
        BLOCK_N: tl.constexpr = tile.shape[0]
        GROUPS: tl.constexpr = tile.shape[1] // 128
        group = tl.arange(0, GROUPS)
        sf = _load_sf(row_ptrs[:, None], live[:, None], group[None, :], L, BYTES)
        values = _fp8.decode_e4m3(tile, tl.float32).reshape(BLOCK_N, GROUPS, 128) * sf[:, :, None]
        return values.reshape(BLOCK_N, GROUPS * 128)
    return tile if tile.dtype == DOT else _fp8.to_float32(tile, True)


@triton.jit
def _load_sf(row_ptrs, live, group, L: tl.constexpr, BYTES: tl.constexpr):
    """Scale factors of groups of 128 columns, float32; 0 where there is none."""
    bits = _load_bytes(row_ptrs + L + group * 4, 4, live & (group * 128 < L), BYTES)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _load_codes(row_ptrs, live, L: tl.constexpr, GROUPS: tl.constexpr, BYTES: tl.constexpr):
    """Codes as bfloat16, which holds them all: [GROUPS, BLOCK_N, 128]; scale factors [GROUPS, 1, BLOCK_N]."""
    group = tl.arange(0, GROUPS)[:, None, None]
    col = group * 128 + tl.arange(0, 128)[None, None, :]
    codes = tl.load(row_ptrs[None, :, None] + col, mask=live[None, :, None] & (col < L), other=0)
    sf = _load_sf(row_ptrs[None, None, :], live[None, None, :], group, L, BYTES)
    return _fp8.decode_e4m3(codes, tl.bfloat16), sf


@triton.jit
def _load_rope(row_ptrs, live, col, L: tl.constexpr, R: tl.constexpr, BYTES: tl.constexpr, DOT: tl.constexpr):
    """[BLOCK_N, BLOCK_R] of DOT, as _load_latent."""
    kept = live[:, None] & (col < R)[None, :]
    if BYTES:
        bits = _load_bytes(row_ptrs[:, None] + L + L // 32 + col[None, :] * 2, 2, kept, BYTES)
        tile = bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        tile = tl.load(row_ptrs[:, None] + L + col[None, :], mask=kept, other=0.0)
    return tile if tile.dtype == DOT else _fp8.to_float32(tile, True)


@triton.jit
def is_finite(x, INTERPRETED: tl.constexpr):
    return tl.abs(_fp8.to_float32(x, INTERPRETED)) < float("inf")


def dot_dtype(q: torch.dtype, cache: torch.dtype) -> torch.dtype:
    """What is multiplied: the type of q and of the cache, or float32."""
    return q if q == cache else torch.float32
