"""The router of DeepSeek-V3, with the number of experts that a model has: sigmoid, bias, eight groups."""

from collections.abc import Callable, Iterator

import torch
from moela.bench.routing import router
from moela.bench.suite import Baseline, Bench, Inputs, Outputs, Part
from moela.shapes import RouterShape
from torch import Tensor

GROUPS, KEPT_GROUPS = 8, 4
CHOICE = {"scoring": "sigmoid", "has_bias": True, "renormalize": True, "scaling": 2.5}


def dims(layer: RouterShape, tokens: int, dtype: str) -> dict[str, object]:
    """Models with too few experts for groups go without."""
    E, topk = layer.num_experts, layer.topk
    groups = {"num_groups": GROUPS, "topk_groups": KEPT_GROUPS, "group_score": "top2sum"}
    has_groups = E % GROUPS == 0 and min(E // GROUPS * KEPT_GROUPS, E - GROUPS) >= topk
    return {"T": tokens, "E": E, "topk": topk, "hostile": False} | CHOICE | (groups if has_groups else {})


def parts(inputs: Inputs) -> Iterator[Part]:
    """Logits are small: one part."""
    yield inputs, lambda outputs: outputs


def in_model_code(logits: Tensor, topk: int, bias: Tensor, groups: int, kept: int, scaling: float) -> Outputs:
    """What modeling_deepseek_v3.py does, op by op; with sorted results, so that they can be compared."""
    scores = logits.sigmoid()
    choice = scores + bias
    if kept < groups:
        best = choice.view(-1, groups, logits.size(1) // groups).topk(2, dim=-1).values.sum(-1)
        stays = torch.zeros_like(best).scatter_(1, best.topk(kept, dim=-1, sorted=False).indices, 1)
        stays = stays.unsqueeze(-1).expand(-1, groups, logits.size(1) // groups).reshape(logits.shape)
        choice = choice.masked_fill(~stays.bool(), float("-inf"))
    ids = choice.topk(topk, dim=-1).indices
    weights = scores.gather(1, ids)
    return weights / (weights.sum(-1, keepdim=True) + 1e-20) * scaling, ids


def arguments(inputs: Inputs) -> tuple:
    names = ("logits", "topk", "bias", "num_groups", "topk_groups", "scaling")
    return tuple(inputs[name] for name in names)


def eager(inputs: Inputs) -> Callable[[], Outputs]:
    return lambda: in_model_code(*arguments(inputs))


def compiled(inputs: Inputs) -> Callable[[], Outputs]:
    torch._dynamo.reset()  # each case is compiled for its own shape
    fast = torch.compile(in_model_code, dynamic=False)
    fast(*arguments(inputs))
    return lambda: fast(*arguments(inputs))


BENCH = Bench(
    op="moe_topk",
    dtypes=("f32",),
    has_tokens=True,
    dims=dims,
    item_bytes=lambda dtype: {"x_bytes": 4},
    parts=parts,
    baselines=(
        Baseline("torch", "transformers' DeepSeek-V3 router, op by op", eager, 1e-5),
        Baseline("torch-compile", "the same under torch.compile", compiled, 1e-5),
    ),
    layers=router,
)


def bench_moe_topk(benchmark, contestant):
    benchmark(contestant)
