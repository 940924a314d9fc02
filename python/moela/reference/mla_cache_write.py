"""Definition of ``mla_cache_write``: a row of the cache per token, at its slot."""

from torch import Tensor

from moela.reference._mla_cache import encode


def mla_cache_write(
    kv_c: Tensor, k_pe: Tensor, cache: Tensor, slot_mapping: Tensor, ue8m0: bool = False
) -> None:
    """The specification of ``moela.mla_cache_write``."""
    P, page_size = cache.shape[:2]
    slots = slot_mapping.long()
    is_here = (slots >= 0) & (slots < P * page_size)
    slots = slots[is_here]
    rows = encode(kv_c, k_pe, cache.dtype, ue8m0)[is_here]  # [tokens, row_size]
    cache[slots // page_size, slots % page_size] = rows
