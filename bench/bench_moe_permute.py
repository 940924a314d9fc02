"""Rows of a batch, sorted by expert: to experts that are drawn at random."""

from collections.abc import Callable

import torch
from moela.bench.bench_moe_topk import parts
from moela.bench.routing import router
from moela.bench.suite import Baseline, Bench, Inputs, Outputs
from moela.shapes import RouterShape


def dims(layer: RouterShape, tokens: int, dtype: str) -> dict[str, object]:
    return {
        "T": tokens,
        "H": layer.hidden,
        "topk": layer.topk,
        "num_experts": layer.num_experts,
        "hostile": False,
    }


def eager(inputs: Inputs) -> Callable[[], Outputs]:
    """As transformers' grouped_mm experts do it, with a stable sort."""
    x, topk_ids, num_experts = (inputs[name] for name in ("x", "topk_ids", "num_experts"))

    def permute() -> Outputs:
        experts = topk_ids.flatten()
        order = experts.argsort(stable=True)
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(len(order), device=order.device)
        ends = experts.bincount(minlength=num_experts).cumsum(0)
        offsets = torch.nn.functional.pad(ends, (1, 0))
        return x.index_select(0, order // topk_ids.size(1)), offsets, inverse.view(topk_ids.shape)

    return permute


BENCH = Bench(
    op="moe_permute",
    dtypes=("bf16",),
    has_tokens=True,
    dims=dims,
    item_bytes=lambda dtype: {"x_bytes": 2},
    parts=parts,
    baselines=(Baseline("torch", "argsort, index_select and bincount", eager, 0.0),),
    layers=router,
)


def bench_moe_permute(benchmark, contestant):
    benchmark(contestant)
