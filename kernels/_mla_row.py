"""A row of the latent cache, written by one program. Definition: encode in moela/reference/_mla_cache.py."""

import triton
import triton.language as tl
from moela.kernels import _fp8


@triton.jit
def _store_bytes(ptrs, bits, COUNT: tl.constexpr, mask):
    """The low COUNT bytes of each element: rows of bytes may begin at any address."""
    for i in tl.static_range(COUNT):
        tl.store(ptrs + i, ((bits >> (8 * i)) & 0xFF).to(tl.uint8), mask=mask)


@triton.jit
def row_of(cache_ptr, slot, page_size, stride_page, stride_slot):
    """Of an int64 slot."""
    return cache_ptr + slot // page_size * stride_page + slot % page_size * stride_slot


@triton.jit
def store_latent(
    row_ptr, kv_c, col, group, L,
    IS_BYTES: tl.constexpr, UE8M0: tl.constexpr, NATIVE: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """kv_c float32 and col its columns, [groups, 128]; group [groups, 1]. Columns from L on hold zeros."""
    if IS_BYTES:
        sf = _fp8.scale_factor(tl.max(_fp8.magnitude_bits(kv_c), axis=1, keep_dims=True), UE8M0)
        codes = _fp8.encode_e4m3(tl.div_rn(kv_c, sf + tl.zeros_like(kv_c)), NATIVE)
        tl.store(row_ptr + col, codes, mask=col < L)
        sf_ptrs = row_ptr + L + group * 4
        _store_bytes(sf_ptrs, sf.to(tl.uint32, bitcast=True), 4, group * 128 < L)
    else:
        tl.store(row_ptr + col, _fp8.round_to(kv_c, row_ptr.dtype.element_ty, INTERPRETED), mask=col < L)


@triton.jit
def store_rope(row_ptr, k_pe, col, L, R, IS_BYTES: tl.constexpr, INTERPRETED: tl.constexpr):
    """k_pe float32 and col its columns, of any shape."""
    if IS_BYTES:
        rounded = _fp8.round_to(k_pe, tl.bfloat16, INTERPRETED).to(tl.uint16, bitcast=True).to(tl.uint32)
        _store_bytes(row_ptr + L + L // 32 + col * 2, rounded, 2, col < R)
    else:
        tl.store(row_ptr + L + col, _fp8.round_to(k_pe, row_ptr.dtype.element_ty, INTERPRETED), mask=col < R)
