"""Tiles of latents in registers, from rows of any format: what the kernels of latent attention share."""

import torch
import triton
import triton.language as tl
from moela.kernels import _fp8


@triton.jit
def _load_bytes(ptrs, COUNT: tl.constexpr, mask):
    """COUNT bytes at any address as the low ones of a uint32."""
    bits = tl.load(ptrs, mask=mask, other=0).to(tl.uint32)
    for i in tl.static_range(1, COUNT):
        bits |= tl.load(ptrs + i, mask=mask, other=0).to(tl.uint32) << (8 * i)
    return bits


@triton.jit
def _load_latent(row_ptrs, live, col, L: tl.constexpr, IS_BYTES: tl.constexpr, DOT: tl.constexpr):
    """[BLOCK_N, BLOCK_L] of DOT: zeros in rows that are not live and in columns from L on."""
    kept = live[:, None] & (col < L)[None, :]
    tile = tl.load(row_ptrs[:, None] + col[None, :], mask=kept, other=0)
    if IS_BYTES:
        BLOCK_N: tl.constexpr = tile.shape[0]
        GROUPS: tl.constexpr = tile.shape[1] // 128
        group = tl.arange(0, GROUPS)
        has_sf = live[:, None] & (group * 128 < L)[None, :]
        sf = _load_bytes(row_ptrs[:, None] + L + group[None, :] * 4, 4, has_sf)
        sf = sf.to(tl.float32, bitcast=True)
        values = _fp8.decode_e4m3(tile, tl.float32).reshape(BLOCK_N, GROUPS, 128) * sf[:, :, None]
        return values.reshape(BLOCK_N, GROUPS * 128)
    return tile if tile.dtype == DOT else _fp8.to_float32(tile, True)


@triton.jit
def _load_rope(
    row_ptrs, live, col, L: tl.constexpr, R: tl.constexpr, IS_BYTES: tl.constexpr, DOT: tl.constexpr
):
    """[BLOCK_N, BLOCK_R] of DOT, as _load_latent."""
    kept = live[:, None] & (col < R)[None, :]
    if IS_BYTES:
        bits = _load_bytes(row_ptrs[:, None] + L + L // 32 + col[None, :] * 2, 2, kept)
        return (bits << 16).to(tl.uint32).to(tl.float32, bitcast=True)
    tile = tl.load(row_ptrs[:, None] + L + col[None, :], mask=kept, other=0.0)
    return tile if tile.dtype == DOT else _fp8.to_float32(tile, True)


def dot_dtype(q: torch.dtype, cache: torch.dtype) -> torch.dtype:
    """What is multiplied: the type of q and of the cache, or float32."""
    return q if q == cache else torch.float32
