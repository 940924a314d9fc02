"""Definition of ``indexer_logits_paged``: ``indexer_logits`` over the keys in the pages of a request."""

import torch
from torch import Tensor

from moela.reference._indexer_cache import keys_of
from moela.reference.indexer_logits import logits_of


def keys_of_request(
    cache: Tensor, block_table: Tensor, seqlens: Tensor, request: int, max_seqlen: int
) -> tuple[Tensor, Tensor, Tensor]:
    """k [S, D], sf_k [S] of what its pages hold up to max_seqlen, and how many are its own."""
    page_size = max(cache.size(1), 1)
    pages = block_table[request, : -(-max_seqlen // page_size)]
    pages = pages.clamp(0, max(cache.size(0) - 1, 0)).long()
    k, sf_k = keys_of(cache, pages if cache.size(0) else pages[:0])
    return k[:max_seqlen], sf_k[:max_seqlen], seqlens[request]


def indexer_logits_paged(
    q: Tensor, cache: Tensor, weights: Tensor, block_table: Tensor, seqlens: Tensor, *, max_seqlen: int
) -> Tensor:
    """The specification of ``moela.indexer_logits_paged``."""
    B, s_q = q.shape[:2]
    logits = torch.full((B, s_q, max_seqlen), -torch.inf, device=q.device)
    for b in range(B):
        k, sf_k, num_keys = keys_of_request(cache, block_table, seqlens, b, max_seqlen)
        key = torch.arange(k.size(0), device=q.device)
        for j in range(s_q):
            is_seen = key < num_keys - (s_q - 1 - j)
            found = logits_of(q[b, j], k, sf_k, weights[b, j]).masked_fill(~is_seen, -torch.inf)
            logits[b, j, : key.size(0)] = found.float()
    return logits
