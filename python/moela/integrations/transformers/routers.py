"""Routers of transformers' models on moela."""

from typing import Any

import torch
from torch import Tensor, nn

from moela.integrations.transformers.takeover import RECORD, Takeover, forward_slot, record_of, why_not
from moela.nn._twin import Stub, tried_out, twin_of
from moela.nn.recognition import Recognised, recognise
from moela.nn.topk_router import run_router
from moela.ops import moe_topk

ROWS = 4  # of the trial
IN_BLOCK = "route_tokens_to_experts"  # until 5.12 blocks of DeepSeek's kind choose the experts themselves


def find_router(router: nn.Module, block: nn.Module) -> Takeover | str:
    """How moela takes over the `router` of a `block`, or why it cannot."""
    if hasattr(block, IN_BLOCK):
        owner, attribute, function = block, IN_BLOCK, route_tokens_to_experts
    else:
        owner, attribute, function = router, forward_slot(router), router_forward
    if record := record_of(owner):
        found = record.note
    else:
        found = recognise(router, block)
        if isinstance(found, str):
            return found.removeprefix(f"{type(router).__name__} ")
        if reason := why_not(owner, attribute) or _why_not(found, router, block):
            return reason
    return Takeover(owner, attribute, function, ("moe_topk",), found.weight.get().device, found)


def router_forward(
    self: nn.Module, hidden_states: Tensor, correction_bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """[..., H] -> logits [T, E], weights [T, topk], ids [T, topk] int64, as transformers' own return them.

    correction_bias: from blocks that have it themselves and hand it over, as MiniMax-M2's.
    """
    found: Recognised = getattr(self, RECORD).note
    weight, bias, own = found.tensors()
    logits, topk_weights, topk_ids = run_router(
        hidden_states,
        weight,
        found.settings,
        bias=bias,
        correction_bias=own if correction_bias is None else correction_bias.flatten(),
    )
    return logits, topk_weights, topk_ids.long()


def route_tokens_to_experts(self: nn.Module, router_logits: Tensor) -> tuple[Tensor, Tensor]:
    """[..., E] -> ids [T, topk] int64, weights [T, topk]."""
    found: Recognised = getattr(self, RECORD).note
    settings, (_, _, correction_bias) = found.settings, found.tensors()
    topk_weights, topk_ids = moe_topk(
        router_logits.reshape(-1, router_logits.size(-1)),
        settings.topk,
        scoring=settings.scoring,
        bias=correction_bias,
        num_groups=settings.num_groups,
        topk_groups=settings.topk_groups,
        group_score=settings.group_score,
        renormalize=settings.renormalize,
        scaling=settings.scaling,
    )
    return topk_ids.long(), topk_weights.to(settings.weights_dtype or router_logits.dtype)


def _why_not(found: Recognised, router: nn.Module, block: nn.Module) -> str | None:
    """None if the block calls our method as we take it, and hands the experts what it returns.

    `recognise` compares what the experts get; what a block did between router and experts it would do twice.
    """
    (E, H), topk = found.weight.get().shape, found.settings.topk
    ids = torch.arange(ROWS * topk).view(ROWS, topk) % E
    weights = 1.0 + torch.arange(ROWS * topk).view(ROWS, topk)
    given: list[Any] = []
    biases: list[Any] = []

    def child(name: str) -> nn.Module | None:
        if name == "experts":
            return Stub(lambda hidden, *args, **kwargs: given.extend((*args, *kwargs.values())) or 0 * hidden)
        if name.startswith("shared"):
            return Stub(lambda hidden, *_, **__: 0 * hidden)
        is_ours = block.get_submodule(name) is router and not hasattr(block, IN_BLOCK)
        result = torch.zeros((ROWS, E)), weights, ids
        return Stub(lambda hidden, *more: biases.extend(more) or result) if is_ours else None

    twin = twin_of(block, lambda name, t: torch.zeros(t.shape), child)
    if hasattr(block, IN_BLOCK):
        vars(twin)[IN_BLOCK] = lambda logits: (ids, weights)
    error = tried_out(lambda: twin(torch.zeros(1, ROWS, H)))
    if isinstance(error, Exception):
        return f"{type(block).__name__} cannot be tried out: {type(error).__name__}"
    own = found.correction_bias and getattr(twin, found.correction_bias.attribute, None)
    if any(bias is not own for bias in biases):
        return f"{type(block).__name__} calls it with more than hidden states"
    is_handed_over = len(given) == 2 and torch.equal(given[0], ids) and torch.equal(given[1], weights)
    return None if is_handed_over else f"{type(block).__name__} changes what the router returns"
