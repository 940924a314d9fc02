"""Definition of ``mla_sparse``: attention of a token over the slots of a latent cache that it names."""

import torch
from torch import Tensor

from moela.reference._mla_cache import decode
from moela.reference.mla_decode import attend


def chosen(q: Tensor, cache: Tensor, indices: Tensor, topk_length: Tensor | None, v_dim: int):
    """Yields of each row (q [H, D], keys [topk, D], 0 where it names none, whether it names one [topk])."""
    num_rows, topk = indices.shape[:-1].numel(), indices.size(-1)
    page_size, num_slots = cache.size(1), cache.size(0) * cache.size(1)
    q = q.reshape(num_rows, *q.shape[-2:])  # [rows, H, D]
    indices = indices.reshape(num_rows, topk).long()  # num_slots may be beyond int32
    is_seen = (indices >= 0) & (indices < num_slots)
    if topk_length is not None:
        is_seen &= torch.arange(topk, device=q.device) < topk_length.reshape(num_rows, 1)
    for row in range(num_rows):
        keys = q.new_zeros(topk, q.size(-1), dtype=torch.float64)
        if num_slots:
            slots = torch.where(is_seen[row], indices[row], 0)
            rows = decode(cache[slots // page_size, slots % page_size], v_dim).double()
            keys = torch.where(is_seen[row, :, None], rows, 0.0)
        yield q[row], keys, is_seen[row]


def share_of_keys(lse: Tensor, attn_sink: Tensor) -> Tensor:
    """e^lse / (e^lse + e^sink): 0 where there is no key, whatever the sink."""
    return torch.where(lse == -torch.inf, 0.0, torch.sigmoid(lse - attn_sink.double()))


def mla_sparse(
    q: Tensor,
    cache: Tensor,
    indices: Tensor,
    *,
    sm_scale: float,
    v_dim: int = 512,
    attn_sink: Tensor | None = None,
    topk_length: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The specification of ``moela.mla_sparse``."""
    out = q.new_empty((*q.shape[:-1], v_dim))  # [..., H, v_dim]
    lse = q.new_empty(q.shape[:-1], dtype=torch.float32)  # [..., H]
    flat = indices.shape[:-1].numel(), q.size(-2)
    for row, (q_row, keys, is_seen) in enumerate(chosen(q, cache, indices, topk_length, v_dim)):
        scores, total = attend(q_row, keys, is_seen, sm_scale)  # [H, topk], [H]
        weights = torch.where(total[:, None] == -torch.inf, 0.0, torch.exp(scores - total[:, None]))
        if attn_sink is not None:
            weights = weights * share_of_keys(total, attn_sink)[:, None]
        out.view(*flat, v_dim)[row] = (weights @ keys[:, :v_dim]).to(q.dtype)
        lse.view(flat)[row] = total.float()
    return out, lse
