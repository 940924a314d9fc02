"""FlashMLA's Python interface on moela: argument order and conventions of deepseek-ai/FlashMLA.

Conventions: softmax_scale is by default that of the width of a key; lse is [B, H, s_q], natural, and +inf
where a query attends to nothing, which has out = 0 as in moela. A schedule is an object that nothing fills.
"""

import moela
import torch
from torch import Tensor

ROW_BYTES = 656  # of DeepSeek-V3.2's cache


class FlashMLASchedMeta:
    """There is nothing to keep between calls."""


def get_mla_metadata(*args: object, **kwargs: object) -> tuple[FlashMLASchedMeta, None]:
    return FlashMLASchedMeta(), None


def with_plus_inf(lse: Tensor) -> Tensor:
    """moela's lse [B, s_q, H] as FlashMLA's [B, H, s_q]."""
    return torch.where(lse == -torch.inf, torch.inf, lse).transpose(1, 2).contiguous()


def flash_mla_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    block_table: Tensor | None,
    cache_seqlens: Tensor | None,
    head_dim_v: int,
    tile_scheduler_metadata: FlashMLASchedMeta,
    num_splits: None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    is_fp8_kvcache: bool = False,
    indices: Tensor | None = None,
    attn_sink: Tensor | None = None,
    extra_k_cache: Tensor | None = None,
    extra_indices_in_kvcache: Tensor | None = None,
    topk_length: Tensor | None = None,
    extra_topk_length: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """q [B, s_q, H, D]; k_cache [num_pages, page_size, H_kv, D], or of bytes. -> out [B, s_q, H, v], lse."""
    if extra_k_cache is not None:
        raise NotImplementedError("a second cache: moela reads one")
    scale = q.size(-1) ** -0.5 if softmax_scale is None else softmax_scale
    if indices is not None:
        return sparse(q, k_cache, indices, head_dim_v, scale, attn_sink, topk_length)
    per_kv_head = q.size(2) // k_cache.size(2)
    results = [
        moela.mla_decode(
            heads,
            k_cache[:, :, i],
            block_table,
            cache_seqlens,
            sm_scale=scale,
            v_dim=head_dim_v,
            causal=causal,
        )
        for i, heads in enumerate(q.split(per_kv_head, 2))
    ]
    out, lse = (torch.cat(parts, 2) for parts in zip(*results, strict=True))
    return out, with_plus_inf(lse)


def sparse(
    q: Tensor,
    k_cache: Tensor,
    indices: Tensor,
    head_dim_v: int,
    scale: float,
    attn_sink: Tensor | None,
    topk_length: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """indices [B, s_q, topk], topk_length [B]."""
    if k_cache.element_size() == 1 and k_cache.size(3) != ROW_BYTES:
        raise NotImplementedError(f"rows of {k_cache.size(3)} bytes: moela has rows of {ROW_BYTES}")
    cache = k_cache.squeeze(2)  # [num_pages, page_size, row]
    if topk_length is not None:
        topk_length = topk_length[:, None].expand(indices.shape[:2]).contiguous()
    out, lse = moela.mla_sparse(
        q,
        cache.view(torch.uint8) if cache.element_size() == 1 else cache,
        indices,
        sm_scale=scale,
        v_dim=head_dim_v,
        attn_sink=attn_sink,
        topk_length=topk_length,
    )
    return out, with_plus_inf(lse)
