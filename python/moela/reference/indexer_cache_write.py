"""Definition of ``indexer_cache_write``: codes and scale factor of a key per token, at its slot."""

from torch import Tensor

from moela.reference._indexer_cache import encode, parts


def indexer_cache_write(k: Tensor, cache: Tensor, slot_mapping: Tensor, ue8m0: bool = False) -> None:
    """The specification of ``moela.indexer_cache_write``."""
    P, page_size = cache.shape[:2]
    slots = slot_mapping.long()
    is_here = (slots >= 0) & (slots < P * page_size)
    slots = slots[is_here]
    for part, values in zip(parts(cache), encode(k, ue8m0), strict=True):
        part[slots // page_size, slots % page_size] = values[is_here]
