"""Which layers of transformers are latent attention as moela computes it: their own code is tried out.

A layer with random tensors in place of its own reads some tokens, and then others behind the cache: with its
own attention to expanded keys, and absorbed. Both have to give the same.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from moela.integrations.transformers.config_with import ConfigWith
from moela.integrations.transformers.mla import KNOWN, Absorbed, mla_forward, why_not_kv_b
from moela.integrations.transformers.takeover import Takeover, forward_slot, record_of, why_not
from moela.nn._twin import tried_out, twin_of
from moela.nn.absorption import Dequantized

OPS = ("mla_decode", "grouped_gemm", "mla_prefill")
SIZES = ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank")
B, HIDDEN = 2, 32  # of the trial; what stands for projections takes any width
CALLS = ((0, 5), (5, 1), (6, 3))  # first token and number of them, at once
PADDING = 2  # the first tokens of the second request
CHOSEN = 4  # keys that an indexer chooses, fewer than there are
# Float32 sums of up to 2^14 products, a few one after the other, are off by less than 2^-17 of their size
# each; another formula gives another number.
TOLERANCE = 2.0**-15
EXPANDED = "its cache has the keys of every head, not latents, which newer releases of transformers have"


def find_mla(layer: nn.Module) -> Takeover | str:
    """How moela takes over a layer with a `kv_b_proj`, or why it does not."""
    slot = forward_slot(layer)
    if record := record_of(layer):
        note = record.note
    else:
        reason = _why_not(layer) or why_not(layer, slot) or why_not(layer, "expand_kv")
        if reason := reason or why_not_kv_b(layer.kv_b_proj) or _tried(layer):
            return reason
        note = Dequantized()
    return Takeover(layer, slot, mla_forward, OPS, layer.kv_b_proj.weight.device, note)


def _why_not(layer: nn.Module) -> str | None:
    if not hasattr(type(layer), "expand_kv"):
        return EXPANDED
    odd = [name for name in SIZES if not isinstance(getattr(layer, name, None), int)]
    if odd:
        return f"it has no {odd[0]}"
    implementation = layer.config._attn_implementation
    return None if implementation in KNOWN else f"its attention is {implementation}, expected eager or sdpa"


def _tried(layer: nn.Module) -> str | None:
    """None if the layer gives the same absorbed."""
    reason = None
    for angles in (_cos_sin, _complex):  # of the releases and models some take these, some those
        found = tried_out(lambda angles=angles: _distance(layer, angles))
        if isinstance(found, str):
            return found
        if isinstance(found, float):
            is_same = found <= TOLERANCE  # not for NaN
            return None if is_same else "absorbed, its attention is another than to its own keys and values"
        reason = (
            reason or f"it cannot be tried out: {type(found).__name__}: {str(found).partition(chr(10))[0]}"
        )
    return reason


def _distance(layer: nn.Module, angles: Callable[[Tensor], Any]) -> float | str:
    """How far the layer is from itself absorbed, in units of its largest output, or why it cannot be."""
    g = torch.Generator().manual_seed(0)
    twin = twin_of(
        layer, lambda name, t: _tensor(t, g), lambda name: _stand_in(layer.get_submodule(name), name, g)
    )
    vars(twin)["config"] = ConfigWith(layer.config, "eager")
    for module in twin.modules():
        if "index_topk" in vars(module):
            vars(module)["index_topk"] = CHOSEN
    forward, absorbed = type(layer).forward, Absorbed(twin, twin.kv_b_proj.weight)
    own, others = DynamicCache(config=layer.config), DynamicCache(config=layer.config)
    distance = 0.0
    for begin, count in CALLS:
        given = _arguments(layer, begin, count, angles, g)
        theirs = forward(twin, **given(own))[0]
        keys = own.layers[layer.layer_idx].keys
        if (keys.size(1), keys.size(3)) != (1, layer.kv_lora_rank):
            return EXPANDED
        mine = forward(absorbed if begin else twin, **given(others))[0]
        distance = max(distance, ((mine - theirs).abs().max() / theirs.abs().max()).item())
    return distance


def _arguments(
    layer: nn.Module, begin: int, count: int, angles: Callable[[Tensor], Any], g: torch.Generator
) -> Callable[[DynamicCache], dict[str, Any]]:
    """What a decoder layer hands its attention, as far as this one takes it."""
    S, R = begin + count, layer.qk_rope_head_dim
    positions = torch.arange(begin, S).expand(B, -1)  # [B, count]
    keys = torch.arange(S)
    is_seen = (keys <= positions[..., None]) & (keys >= torch.tensor([0, PADDING])[:, None, None])
    mask = torch.zeros(B, 1, count, S).masked_fill(~is_seen[:, None], torch.finfo(torch.float32).min)
    arguments = {
        "hidden_states": torch.randn(B, count, HIDDEN, generator=g),
        "attention_mask": mask,
        "position_ids": positions,
        "position_embeddings": angles(torch.randn(B, count, R // 2, generator=g)),
    }
    if getattr(layer, "indexer", None) is None:  # then an earlier layer chooses
        arguments["prev_topk_indices"] = torch.arange(S - CHOSEN, S, dtype=torch.int32).expand(B, count, -1)
    names = inspect.signature(type(layer).forward).parameters
    arguments = {name: value for name, value in arguments.items() if name in names}
    return lambda cache: arguments | {"cache" if "cache" in names else "past_key_values": cache}


def _cos_sin(angles: Tensor) -> tuple[Tensor, Tensor]:
    twice = torch.cat([angles, angles], -1)  # [B, count, R]
    return twice.cos(), twice.sin()


def _complex(angles: Tensor) -> Tensor:
    return torch.polar(torch.ones_like(angles), angles)


def _tensor(t: Tensor, g: torch.Generator) -> Tensor:
    if not t.is_floating_point():
        return t.cpu()
    noise = torch.randn(t.shape, generator=g)
    return 1 + 0.1 * noise if t.dim() == 1 else noise


def _stand_in(module: nn.Module, name: str, g: torch.Generator) -> nn.Module | None:
    if not isinstance(module, nn.Linear):
        return None
    N, K = module.out_features, module.in_features
    if name != "kv_b_proj":
        return _Fold(N)
    linear = nn.Linear(K, N, bias=False, device="meta")
    some = torch.randn(251, K, generator=g) * K**-0.5  # no head's rows are another's
    linear.weight = nn.Parameter(some[torch.arange(N) % len(some)], requires_grad=False)
    return linear


class _Fold(nn.Module):
    """[..., K] -> [..., N] in the place of a projection: no large product, but all of x has a part in it."""

    def __init__(self, N: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(N, 0), requires_grad=False)  # some ask for its dtype

    def forward(self, x: Tensor) -> Tensor:
        N, K = len(self.weight), x.size(-1)
        folds = -(-K // N)
        x = nn.functional.pad(x[..., torch.arange(max(N, K)) % K], (0, folds * N - max(N, K)))
        x = x * (1.0 + torch.arange(folds * N) % 7)
        return x.view(*x.shape[:-1], folds, N).sum(-2) / 4
