"""The pages of the indexer's key cache in Triton. Definition: python/moela/reference/_indexer_cache.py."""

import triton
import triton.language as tl


@triton.jit
def find_keys(cache_ptr, page, offset, page_size, D, stride_page):
    """int64 pages and offsets in them -> pointers to the codes and to the scale factors of keys."""
    page_ptr = cache_ptr + page * stride_page
    return page_ptr + offset * D, page_ptr + page_size * D + offset * 4


@triton.jit
def load_sf(ptrs, mask):
    """float32 at any address."""
    bits = tl.load(ptrs, mask=mask, other=0).to(tl.uint32)
    for i in tl.static_range(1, 4):
        bits |= tl.load(ptrs + i, mask=mask, other=0).to(tl.uint32) << (8 * i)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def store_sf(ptrs, sf, mask):
    bits = sf.to(tl.uint32, bitcast=True)
    for i in tl.static_range(4):
        tl.store(ptrs + i, ((bits >> (8 * i)) & 0xFF).to(tl.uint8), mask=mask)
