"""Definition of ``mla_decode``: a token's latent row is its key and, in its first columns, its value."""

import torch
from torch import Tensor

from moela.reference._mla_cache import decode


def rows_of_request(cache: Tensor, block_table: Tensor | None, request: int, v_dim: int) -> Tensor:
    """[capacity, D] float64: what the pages of a request hold, in order; garbage beyond its length."""
    if block_table is None:
        rows = cache[request]  # [capacity, row]
    else:
        pages = block_table[request].clamp(0, max(cache.size(0) - 1, 0)).long()
        rows = cache[pages].flatten(0, 1)
    return decode(rows, v_dim).double()


def queries(q: Tensor, cache: Tensor, block_table: Tensor | None, seqlens: Tensor, v_dim: int, causal: bool):
    """Yields (request, query, keys [capacity, D], 0 where it sees none, which it sees [capacity])."""
    B, s_q = q.shape[:2]
    for request in range(B):
        rows = rows_of_request(cache, block_table, request, v_dim)
        for query in range(s_q):
            limit = seqlens[request] - (s_q - 1 - query if causal else 0)
            is_seen = torch.arange(rows.size(0), device=rows.device) < limit
            yield request, query, torch.where(is_seen[:, None], rows, 0.0), is_seen


def attend(q: Tensor, keys: Tensor, is_seen: Tensor, sm_scale: float) -> tuple[Tensor, Tensor]:
    """q [H, D], keys [capacity, D] -> (scores [H, capacity], -Inf where not seen; lse [H])."""
    scores = (q.double() @ keys.T * sm_scale).masked_fill(~is_seen, -torch.inf)
    return scores, scores.logsumexp(-1)


def mla_decode(
    q: Tensor,
    cache: Tensor,
    block_table: Tensor | None,
    seqlens: Tensor,
    *,
    sm_scale: float,
    v_dim: int = 512,
    causal: bool = True,
) -> tuple[Tensor, Tensor]:
    """The specification of ``moela.mla_decode``."""
    out = q.new_empty((*q.shape[:3], v_dim))  # [B, s_q, H, v_dim]
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    for b, j, keys, is_seen in queries(q, cache, block_table, seqlens, v_dim, causal):
        scores, total = attend(q[b, j], keys, is_seen, sm_scale)
        weights = torch.where(total[:, None] == -torch.inf, 0.0, torch.exp(scores - total[:, None]))
        out[b, j] = (weights @ keys[:, :v_dim]).to(q.dtype)
        lse[b, j] = total.float()
    return out, lse
