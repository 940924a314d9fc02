"""The layout of the indexer's key cache: what is in a page.

A page [page_size, D + 4] is one run of bytes: the D e4m3 codes of each of its keys, then their float32 scale
factors, one per key. Its rows of D + 4 bytes mean nothing by themselves.
"""

import torch
from torch import Tensor

from moela.reference.per_token_group_quant_fp8 import per_token_group_quant_fp8

SF_BYTES = 4  # of a key's scale factor


def encode(k: Tensor, ue8m0: bool) -> tuple[Tensor, Tensor]:
    """[T, D] -> codes [T, D], scale factors [T, 4], both uint8: one scale factor for a whole key."""
    T, D = k.shape
    if D == 0:
        k = k.new_zeros(T, 1)  # the scale factor of nothing is that of zeros
    q, sf = per_token_group_quant_fp8(k, k.size(1), ue8m0)  # [T, D], [T, 1]
    return q.view(torch.uint8)[:, :D], sf.contiguous().view(torch.uint8)


def parts(cache: Tensor) -> tuple[Tensor, Tensor]:
    """[num_pages, page_size, D + 4] -> views: codes [num_pages, page_size, D], scale factors [..., 4]."""
    P, page_size, row = cache.shape
    D = row - SF_BYTES
    pages = cache.view(P, page_size * row)
    codes, sf = pages.split([page_size * D, page_size * SF_BYTES], 1)
    return codes.unflatten(1, (page_size, D)), sf.unflatten(1, (page_size, SF_BYTES))


def keys_of(cache: Tensor, pages: Tensor) -> tuple[Tensor, Tensor]:
    """[n] page numbers -> k [n * page_size, D] e4m3, sf_k [n * page_size] float32."""
    codes, sf = (part[pages].flatten(0, 1).contiguous() for part in parts(cache))
    return codes.view(torch.float8_e4m3fn), sf.view(torch.float32).flatten()
