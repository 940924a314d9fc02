"""Definition of ``mla_prefill``: attention of the queries of each sequence over its keys."""

import torch
from torch import Tensor

from moela.reference.mla_decode import as_float32, lse_of


def sequences(cu_seqlens_q: Tensor, cu_seqlens_k: Tensor) -> list[tuple[slice, slice]]:
    """(rows of q, rows of k) of each sequence; reads the offsets on the host."""
    of_q, of_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    return [(slice(*of_q[b : b + 2]), slice(*of_k[b : b + 2])) for b in range(len(of_q) - 1)]


def sees(s_q: int, s_k: int, causal: bool, device: torch.device) -> Tensor:
    """[s_q, s_k] bool: the last query sees every key, the one before all but the last key."""
    query = torch.arange(s_q, device=device)[:, None]
    key = torch.arange(s_k, device=device)[None, :]
    return key < s_k - (s_q - 1 - query if causal else 0 * query)


def scores(q: Tensor, k: Tensor, sm_scale: float, seen: Tensor) -> Tensor:
    """q [s_q, H, D], k [s_k, H, D], float64 -> [H, s_q, s_k], -Inf where a query does not see the key."""
    return as_float32(torch.einsum("qhd,khd->hqk", q, k) * sm_scale).masked_fill(~seen, -torch.inf)


def weighted(weights: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """[H, s_q, s_k], [s_k, H, Dv] -> [s_q, H, Dv]; 0 * NaN of a value that is not seen counts for nothing."""
    if v.isfinite().all():
        return torch.einsum("hqk,khd->qhd", weights, v)
    products = weights.permute(1, 2, 0)[..., None] * v  # [s_q, s_k, H, Dv]
    return products.masked_fill(~seen[..., None, None], 0.0).sum(1)


def mla_prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    *,
    sm_scale: float,
    causal: bool = True,
) -> tuple[Tensor, Tensor]:
    """The specification of ``moela.mla_prefill``; rows of no sequence are queries without keys."""
    out = q.new_zeros((*q.shape[:2], v.size(2)))  # [Tq, H, Dv]
    lse = q.new_full(q.shape[:2], -torch.inf, dtype=torch.float32)  # [Tq, H]
    for rows, keys in sequences(cu_seqlens_q, cu_seqlens_k):
        seen = sees(rows.stop - rows.start, keys.stop - keys.start, causal, q.device)  # [s_q, s_k]
        s = scores(q[rows].double(), k[keys].double(), sm_scale, seen)  # [H, s_q, s_k]
        total = lse_of(s)  # [H, s_q]
        weights = torch.where(total[..., None] == -torch.inf, 0.0, torch.exp(s - total[..., None]))
        out[rows] = weighted(weights, v[keys].double(), seen).to(q.dtype)
        lse[rows] = total.T.float()
    return out, lse
