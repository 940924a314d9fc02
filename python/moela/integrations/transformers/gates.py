"""Which activation a module of experts has, found once and in a way that torch.compile can trace."""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers.activations import SiLUActivation
from transformers.integrations import moe

from moela import nn as layers
from moela.integrations.transformers.takeover import is_watched
from moela.nn import Gate, SwiGlu

Settings = tuple[float | None, float | None]  # limit and alpha of a SwiGlu

# Per module: what its gate may depend on, and what was found for that.
_found: WeakKeyDictionary[nn.Module, tuple[Any, Settings | None]] = WeakKeyDictionary()


def gate_of(experts: nn.Module) -> Gate:
    """The activation of `experts`: a SwiGlu if it is one that nobody watches, else what the module calls."""
    if not experts.has_gate:
        return experts.act_fn
    if isinstance(act_fn := getattr(experts, "act_fn", None), nn.Module) and is_watched(act_fn):
        return experts._apply_gate
    if type(experts)._apply_gate is moe._default_apply_gate and _is_silu(experts.act_fn):
        return SwiGlu()
    settings = _swiglu_settings(experts)
    return experts._apply_gate if settings is None else SwiGlu(*settings)


def _is_silu(act_fn: Any) -> bool:
    return act_fn is nn.functional.silu or type(act_fn) in (SiLUActivation, nn.SiLU)


@torch._dynamo.assume_constant_result  # runs while torch.compile traces
def _swiglu_settings(experts: nn.Module) -> Settings | None:
    state = _state(experts)
    if experts not in _found or _found[experts][0] != state:
        gate = layers.gate_of(experts)
        settings = (gate.limit, gate.alpha) if isinstance(gate, SwiGlu) else None
        _found[experts] = state, settings
    return _found[experts][1]


def _state(experts: nn.Module) -> Any:
    """The gate function, the plain attributes and the submodules: another limit may be another gate."""
    plain = {k: v for k, v in vars(experts).items() if isinstance(v, (bool, int, float, str, type(None)))}
    return type(experts)._apply_gate, plain, {k: id(v) for k, v in experts._modules.items()}
