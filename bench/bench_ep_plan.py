"""Which rows travel to which rank: experts drawn at random, spread over 8 ranks."""

from collections.abc import Callable

import torch
from moela.bench.bench_moe_topk import parts
from moela.bench.routing import router
from moela.bench.suite import Baseline, Bench, Inputs, Outputs
from moela.shapes import RouterShape

NUM_RANKS = 8


def dims(layer: RouterShape, tokens: int, dtype: str) -> dict[str, object]:
    return {
        "T": tokens,
        "topk": layer.topk,
        "num_experts": layer.num_experts,
        "num_ranks": NUM_RANKS,
        "hostile": False,
    }


def eager(inputs: Inputs) -> Callable[[], Outputs]:
    """A table of tokens and ranks, and the places of what is set in it."""
    topk_ids, num_experts, R = (inputs[name] for name in ("topk_ids", "num_experts", "num_ranks"))
    size, rest = divmod(num_experts, R)
    sizes = torch.tensor([size + (rank < rest) for rank in range(R)])
    owner = torch.arange(R).repeat_interleave(sizes)

    def plan() -> Outputs:
        T, topk = topk_ids.shape
        ranks = owner[topk_ids]
        is_sent = torch.zeros(R, T, dtype=torch.bool).scatter_(0, ranks.T, True)
        rows = is_sent.nonzero()[:, 1].int()
        place = is_sent.flatten().cumsum(0).view(R, T) - 1
        slots = place.T.gather(1, ranks).int()
        send_rows = torch.nn.functional.pad(rows, (0, T * min(topk, R) - len(rows)), value=-1)
        return send_rows, is_sent.sum(1).int(), slots

    return plan


BENCH = Bench(
    op="ep_plan",
    dtypes=("bf16",),
    has_tokens=True,
    dims=dims,
    item_bytes=lambda dtype: {},
    parts=parts,
    baselines=(Baseline("torch", "scatter, nonzero and cumsum", eager, 0.0),),
    layers=router,
)


def bench_ep_plan(benchmark, contestant):
    benchmark(contestant)
