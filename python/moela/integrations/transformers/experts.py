"""The experts of transformers' models on moela: what its two registries and `moela.patch` call."""

import functools
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ExpertsInterface

from moela.integrations.transformers import fp8
from moela.integrations.transformers.gates import gate_of
from moela.nn import run_experts
from moela.nn.expert_layer import is_one_op

try:
    from transformers.integrations.finegrained_fp8 import FP8ExpertsInterface
except ImportError:  # until 5.6 it needs Triton; FP8 models do not load there either
    FP8ExpertsInterface = None


def register() -> None:
    ExpertsInterface.register("moela", experts_forward)
    if FP8ExpertsInterface is not None:
        FP8ExpertsInterface.register("moela", fp8_experts_forward)
    _accept_the_name()


def _accept_the_name() -> None:
    """Until 5.8 models take the names on a list in their code, not those that are registered."""
    check = PreTrainedModel.get_correct_experts_implementation
    try:
        check(None, "moela")
    except ValueError:

        @functools.wraps(check)
        def accept(self: PreTrainedModel, requested_experts: str | None) -> str:
            return "moela" if requested_experts == "moela" else check(self, requested_experts)

        PreTrainedModel.get_correct_experts_implementation = accept


def experts_forward(
    self: nn.Module,
    hidden_states: Tensor,
    top_k_index: Tensor | None = None,
    top_k_weights: Tensor | None = None,
    *,
    router_indices: Tensor | None = None,
    routing_weights: Tensor | None = None,
) -> Tensor:
    """A forward for every class under `use_experts_implementation`; gpt-oss has the last two names.

    [T, H], ids and weights [T, topk] -> [T, H] of hidden_states' dtype. An id outside [0, num_experts), as
    expert parallelism has them for experts of other ranks, contributes nothing.
    """
    w13 = _up_weight(self)
    x = hidden_states.to(w13.dtype)  # under autocast they may differ
    ids = router_indices if top_k_index is None else top_k_index
    weights = routing_weights if top_k_weights is None else top_k_weights
    return run_experts(x, w13, self.down_proj, weights, ids, **_options(self)).to(hidden_states.dtype)


def fp8_experts_forward(
    self: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """A forward for `FP8Experts`; as `experts_forward`."""
    w13 = _up_weight(self)
    if not fp8.is_quantized(w13):
        return experts_forward(self, hidden_states, top_k_index, top_k_weights)
    fp8.require("fp8_experts_forward", self, w13)
    return run_experts(
        hidden_states,
        w13,
        self.down_proj,
        top_k_weights,
        top_k_index,
        sf_w13=self.gate_up_proj_scale_inv if self.has_gate else self.up_proj_scale_inv,
        sf_w2=self.down_proj_scale_inv,
        quantize_activations=fp8.quantize_activations(self, w13.device),
        **_options(self),
    )


def uses_one_op(experts: nn.Module) -> bool:
    """Whether `run_experts` computes this layer as one op, when no gradient is asked for."""
    w13, w2, options = _up_weight(experts), experts.down_proj, _options(experts)
    if options["is_transposed"]:
        w13, w2 = w13.mT, w2.mT
    return is_one_op(w13, w2, options["gate"], options.get("post_norm"))


def _up_weight(experts: nn.Module) -> Tensor:
    return experts.gate_up_proj if experts.has_gate else experts.up_proj


def _options(experts: nn.Module) -> dict[str, Any]:
    """What `use_experts_implementation` says of the class."""
    options = {"gate": gate_of(experts), "is_transposed": experts.is_transposed}
    if experts.has_bias:
        options["b13"] = experts.gate_up_proj_bias if experts.has_gate else experts.up_proj_bias
        options["b2"] = experts.down_proj_bias
    if getattr(experts, "has_post_expert_norm", False):  # from 5.18 on
        options["post_norm"] = experts.post_expert_norm
    return options
