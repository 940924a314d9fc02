"""Prompts of transformers' latent attention: `moela.mla_prefill` over the keys and values of every head.

A layer's own forward runs and expands them, but names another attention than torch's. In a call where that is
not known to be the same it is torch's after all.
"""

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from moela.integrations.transformers.config_with import ConfigWith
from moela.nn.mla_attention import attend_among
from moela.ops._check import FLOAT_DTYPES

NAME = "moela_mla_expanded"


class Expanded:
    """A layer as its own forward sees it, but for the attention to the keys and values of every head."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.config = ConfigWith(layer.config, NAME)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.layer, name)


def is_expanded(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call may be one for the first tokens of their requests, whose attention is torch's.

    On the CPU torch has no fused kernel for values that are narrower than keys; on GPUs it has some.
    """
    hidden = kwargs.get("hidden_states")
    is_known = not args and hidden is not None and layer.config._attn_implementation == "sdpa"
    return is_known and hidden.device.type == "cpu" and kwargs.get("attention_mask") is None


def expanded_attention(
    module: Expanded,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls as attention: [B, H, S, ...] each -> [B, S, H, V]."""
    is_alike = query.dtype == key.dtype == value.dtype and query.shape == key.shape
    is_plain = attention_mask is None and not dropout and getattr(module, "is_causal", True)
    has_more = any(
        kwargs.get(name) is not None for name in ("is_causal", "position_bias", "softcap", "indices")
    )
    if is_alike and is_plain and not has_more and query.dtype in FLOAT_DTYPES:
        return attend_among(*(t.transpose(1, 2) for t in (query, key, value)), scaling), None
    return sdpa_attention_forward(
        module.layer, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
    )


AttentionInterface.register(NAME, expanded_attention)
