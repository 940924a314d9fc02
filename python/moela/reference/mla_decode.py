"""Definition of ``mla_decode``: a token's latent row is its key and, in its first columns, its value."""

import torch
from torch import Tensor

from moela.reference._mla_cache import decode


def rows_of_request(cache: Tensor, block_table: Tensor | None, request: int | Tensor, v_dim: int) -> Tensor:
    """[capacity, D] float64: what the pages of a request hold, in order; garbage beyond its length."""
    if block_table is None:
        rows = cache[request]  # [capacity, row]
    else:
        pages = block_table[request].clamp(0, max(cache.size(0) - 1, 0)).long()
        rows = cache[pages].flatten(0, 1)
    return decode(rows, v_dim).double()


def queries(
    q: Tensor,
    cache: Tensor,
    block_table: Tensor | None,
    seqlens: Tensor,
    v_dim: int,
    causal: bool,
    cu_seqlens_q: Tensor | None,
):
    """Yields (its place in q, keys [capacity, D], 0 where it sees none, which it sees [capacity])."""

    def seen(rows: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
        is_seen = torch.arange(rows.size(0), device=rows.device) < limit
        return torch.where(is_seen[:, None], rows, 0.0), is_seen

    if cu_seqlens_q is not None:
        for token in range(q.size(0)):
            request = torch.searchsorted(cu_seqlens_q[1:], token, right=True)
            after = cu_seqlens_q[request + 1] - 1 - token if causal else 0
            rows = rows_of_request(cache, block_table, request, v_dim)
            yield (token,), *seen(rows, seqlens[request] - after)
        return
    B, s_q = q.shape[:2]
    for request in range(B):
        rows = rows_of_request(cache, block_table, request, v_dim)
        for query in range(s_q):
            after = s_q - 1 - query if causal else 0
            yield (request, query), *seen(rows, seqlens[request] - after)


def lse_of(scores: Tensor) -> Tensor:
    """[..., S] -> [...]: NaN if a score is +Inf, as its weight is, e^(Inf - Inf); torch would say +Inf."""
    total = scores.logsumexp(-1)
    return torch.where(total == torch.inf, torch.nan, total)


def as_float32(scores: Tensor) -> Tensor:
    """Infinite beyond float32, which kernels have scores in: no attention gives an lse of Inf."""
    return torch.where(scores.abs() > torch.finfo(torch.float32).max, scores.detach() * torch.inf, scores)


def attend(q: Tensor, keys: Tensor, is_seen: Tensor, sm_scale: float) -> tuple[Tensor, Tensor]:
    """q [H, D], keys [capacity, D] -> (scores [H, capacity], -Inf where not seen; lse [H])."""
    scores = as_float32(q.double() @ keys.T * sm_scale).masked_fill(~is_seen, -torch.inf)
    return scores, lse_of(scores)


def mla_decode(
    q: Tensor,
    cache: Tensor,
    block_table: Tensor | None,
    seqlens: Tensor,
    *,
    sm_scale: float,
    v_dim: int = 512,
    causal: bool = True,
    cu_seqlens_q: Tensor | None = None,
    schedule: Tensor | None = None,
    batch_invariant: bool = False,
) -> tuple[Tensor, Tensor]:
    """The specification of ``moela.mla_decode``."""
    out = q.new_empty((*q.shape[:-1], v_dim))  # [B, s_q, H, v_dim] or [total, H, v_dim]
    lse = q.new_empty(q.shape[:-1], dtype=torch.float32)
    for at, keys, is_seen in queries(q, cache, block_table, seqlens, v_dim, causal, cu_seqlens_q):
        scores, total = attend(q[at], keys, is_seen, sm_scale)
        weights = torch.where(total[:, None] == -torch.inf, 0.0, torch.exp(scores - total[:, None]))
        out[at] = (weights @ keys[:, :v_dim]).to(q.dtype)
        lse[at] = total.float()
    return out, lse
