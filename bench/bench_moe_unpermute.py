"""The weighted sum of each token's rows."""

from collections.abc import Callable

from moela.bench.bench_moe_topk import parts
from moela.bench.routing import router
from moela.bench.suite import Baseline, Bench, Inputs
from moela.shapes import RouterShape
from torch import Tensor


def dims(layer: RouterShape, tokens: int, dtype: str) -> dict[str, object]:
    return {"T": tokens, "H": layer.hidden, "topk": layer.topk, "hostile": False}


def eager(inputs: Inputs) -> Callable[[], Tensor]:
    """As transformers' experts do it: every product rounded to y's dtype."""
    y, weights, inverse = (inputs[name] for name in ("y", "topk_weights", "inverse"))
    return lambda: (y[inverse.long()] * weights.to(y.dtype).unsqueeze(-1)).sum(1)


BENCH = Bench(
    op="moe_unpermute",
    dtypes=("bf16",),
    has_tokens=True,
    dims=dims,
    item_bytes=lambda dtype: {"x_bytes": 2},
    parts=parts,
    baselines=(Baseline("torch", "index, multiply and sum", eager, 1e-2),),
    layers=router,
)


def bench_moe_unpermute(benchmark, contestant):
    benchmark(contestant)
