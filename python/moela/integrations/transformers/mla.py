"""Latent attention of transformers' models on moela: decoding over the latents as the cache has them.

Prompts are in mla_expanded.py.

A layer's own forward computes queries, rotates, updates the cache and projects the result, whatever its model
does there. Only where it expands latents to keys and values of every head and attends to these, it runs on a
stand-in for the layer that hands the latents through, and attends to them absorbed.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.cache_utils import Cache

from moela.integrations.transformers import fp8
from moela.integrations.transformers.config_with import ConfigWith
from moela.integrations.transformers.latent_cache import adopt, is_trained, rows_of
from moela.integrations.transformers.mla_expanded import Expanded, is_expanded
from moela.integrations.transformers.mla_mask import Tokens, chosen_tokens, tokens_of
from moela.integrations.transformers.takeover import RECORD, forward_slot, is_watched, why_not
from moela.nn.absorption import absorb, is_cheaper, split_kv_b, unabsorb
from moela.nn.fp8_linear import Fp8Linear
from moela.ops import mla_decode
from moela.ops._check import FLOAT_DTYPES

try:
    from transformers.integrations.finegrained_fp8 import FP8Linear
except ImportError:  # until 5.6 it needs Triton; FP8 models do not load there either
    FP8Linear = ()

NAME = "moela_mla"
KNOWN = ("eager", "sdpa")  # attention whose masks say all about who sees what


def mla_forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """A forward for layers that have `expand_kv`: their own, absorbed, or with moela's attention, where that
    is known to be the same."""
    cache = next((v for v in (*args, *kwargs.values()) if isinstance(v, Cache)), None)
    if cache is not None:
        adopt(cache, self.layer_idx)
        if (
            not is_trained(cache, self.layer_idx)
            and is_absorbed(self, args, kwargs)
            and (weight := _weight(self, kwargs["hidden_states"])) is not None
        ):
            return type(self).forward(Absorbed(self, weight), **kwargs)
    layer = Expanded(self) if is_expanded(self, args, kwargs) else self
    return type(self).forward(layer, *args, **kwargs)


def is_absorbed(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call for tokens behind a cache is answered absorbed."""
    hidden, mask = kwargs.get("hidden_states"), kwargs.get("attention_mask")
    is_known = not args and hidden is not None and "expand_kv" not in vars(layer)
    if not is_known or not _is_inference(layer, hidden, kwargs):
        return False
    B, s_q = hidden.shape[:2]
    if mask is None:  # a single query sees all keys; what several see is up to the attention
        return s_q == 1
    if mask.dtype == torch.bool and layer.config._attn_implementation == "eager":
        return False  # which adds yes and no to scores, as 1 and 0
    P, V, L = layer.qk_nope_head_dim, layer.v_head_dim, layer.kv_lora_rank
    num_keys = mask.size(-1)
    is_worth_it = num_keys > s_q == 1 or is_cheaper(s_q, num_keys, P, V, L)
    return is_worth_it and mask.shape[:-1] == (B, 1, s_q) and tokens_of(mask) is not None


def _is_inference(layer: nn.Module, hidden: Tensor, kwargs: dict[str, Any]) -> bool:
    """Whether nobody wants what only the layer's own attention gives: gradients, dropout, its weights."""
    is_trained = torch.is_grad_enabled() and (
        hidden.requires_grad or any(p.requires_grad for p in layer.parameters())
    )
    drops = layer.training and getattr(layer, "attention_dropout", 0) > 0
    config = layer.config
    shows = kwargs.get("output_attentions") or getattr(config, "output_attentions", False)
    is_known = config._attn_implementation in KNOWN and hidden.dtype in FLOAT_DTYPES
    return is_known and not (is_trained or drops or shows or torch.is_autocast_enabled(hidden.device.type))


def _weight(layer: nn.Module, hidden: Tensor) -> Tensor | None:
    """[H * (P + V), L] of hidden's dtype, if there is one."""
    kv_b_proj, note = layer.kv_b_proj, getattr(layer, RECORD).note
    if is_watched(kv_b_proj) or why_not_kv_b(kv_b_proj) or kv_b_proj.weight.device != hidden.device:
        return None
    if fp8.is_quantized(kv_b_proj.weight):
        return note.get(kv_b_proj.weight, kv_b_proj.weight_scale_inv, hidden.dtype)
    return kv_b_proj.weight if kv_b_proj.weight.dtype == hidden.dtype else None


def why_not_kv_b(kv_b_proj: nn.Module) -> str | None:
    """None if all that the projection computes is a product with a weight that moela can read."""
    if type(kv_b_proj) is not nn.Linear and not isinstance(kv_b_proj, (FP8Linear, Fp8Linear)):
        return f"its kv_b_proj is a {type(kv_b_proj).__name__}"
    weight = kv_b_proj.weight
    if type(weight) is not nn.Parameter:
        return f"the weight of its kv_b_proj is a {type(weight).__name__}"
    if kv_b_proj.bias is not None:
        return "its kv_b_proj has a bias"
    if kv_b_proj._forward_hooks or kv_b_proj._forward_pre_hooks:
        return "its kv_b_proj has hooks"
    is_blockwise = getattr(kv_b_proj, "block_size", None) is not None
    if fp8.is_quantized(weight) and is_blockwise and (reason := fp8.why_not(kv_b_proj, weight)):
        return f"its kv_b_proj has {reason}"
    reason = why_not(kv_b_proj, forward_slot(kv_b_proj))
    return reason and f"its kv_b_proj: {reason}"


class Absorbed:
    """A layer as its own forward sees it, but for what is done with latents."""

    def __init__(self, layer: nn.Module, weight: Tensor) -> None:
        self.layer = layer
        self.weight = weight
        self.config = ConfigWith(layer.config, NAME)
        self.latents: tuple[Tensor, Tensor] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.layer, name)

    def expand_kv(self, kv_nope: Tensor, k_rot: Tensor) -> tuple[Tensor, Tensor]:
        self.latents = kv_nope, k_rot
        return self.latents


def absorbed_attention(
    module: Absorbed,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    indices: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What transformers calls as attention: query [B, H, s_q, P + R], key and value the latents, or an error.

    indices: [B, s_q, topk], of layers with an indexer: the keys that it chose.
    """
    is_ours = isinstance(module, Absorbed) and module.latents is not None
    if not is_ours or key is not module.latents[0] or value is not module.latents[1] or dropout:
        raise RuntimeError(f"{NAME}: expected the latents of a layer that moela.patch knows, got other keys")
    P, R, S = module.qk_nope_head_dim, value.size(-1), key.size(2)
    w_uk, w_uv = split_kv_b(module.weight, query.size(1), P)
    q = absorb(*query.transpose(1, 2).split([P, R], -1), w_uk)  # [B, s_q, H, L + R]
    rows = rows_of(key, value)  # [B, S, L + R]
    if attention_mask is None and indices is None:
        seqlens = torch.full((rows.size(0),), S, dtype=torch.int32, device=rows.device)
        out, _ = mla_decode(q, rows, None, seqlens, sm_scale=scaling, v_dim=key.size(-1))
    else:
        out = _of_tokens(q, rows, _tokens(attention_mask, indices, S), scaling, key.size(-1))
    return unabsorb(out, w_uv), None


def _tokens(mask: Tensor | None, indices: Tensor | None, S: int) -> Tokens:
    tokens = None if mask is None or mask.size(-1) != S else tokens_of(mask)
    if tokens is None:
        raise RuntimeError(f"{NAME}: expected a mask [B, 1, s_q, {S}] of yes and no, got another one")
    return tokens if indices is None else chosen_tokens(indices, mask)


def _of_tokens(q: Tensor, rows: Tensor, tokens: Tokens, scaling: float, v_dim: int) -> Tensor:
    """[B, s_q, H, L + R], [B, S, L + R] -> [B, s_q, H, v_dim]: each query a request of its own."""
    B, s_q, H, D = q.shape
    S, stride = rows.size(1), rows.stride(0)
    if rows.stride(1) != D or stride % D:
        rows, stride = rows.contiguous(), S * D
    pages = rows.as_strided(((B - 1) * (stride // D) + S, 1, D), (D, D, 1))  # a token each
    first = torch.arange(B, dtype=torch.int32, device=q.device) * (stride // D)
    table = tokens.block_table + first.repeat_interleave(s_q)[:, None]  # [B * s_q, n]
    q = q.reshape(B * s_q, 1, H, D)
    out, _ = mla_decode(q, pages, table, tokens.seqlens, sm_scale=scaling, v_dim=v_dim)
    return out.view(B, s_q, H, v_dim)


AttentionInterface.register(NAME, absorbed_attention)
