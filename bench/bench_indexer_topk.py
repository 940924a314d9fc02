"""The tokens that a new token attends to, of --tokens."""

from collections.abc import Callable
from typing import Any

from moela.bench.bench_indexer_logits import indexer
from moela.bench.bench_moe_topk import parts
from moela.bench.suite import Baseline, Bench, Inputs, Outputs
from moela.shapes import IndexerShape


def dims(layer: IndexerShape, tokens: int, dtype: str) -> dict[str, Any]:
    return {"T": 1, "S": tokens, "topk": min(layer.topk, tokens), "hostile": False}


def largest(is_sorted: bool) -> Callable[[Inputs], Callable[[], Outputs]]:
    """torch.topk, and its columns in ascending order."""

    def prepare(inputs: Inputs) -> Callable[[], Outputs]:
        def choose() -> Outputs:
            columns = inputs["logits"].topk(inputs["topk"], sorted=is_sorted).indices
            return (columns.sort(-1).values.int(),)

        return choose

    return prepare


BENCH = Bench(
    op="indexer_topk",
    dtypes=("f32",),
    has_tokens=True,
    dims=dims,
    item_bytes=lambda dtype: {},
    parts=parts,
    baselines=(
        Baseline("torch-topk", "torch.topk, sorted by column", largest(is_sorted=True), 1e-6),
        Baseline("torch-unsorted", "torch.topk without its sort, sorted by column", largest(False), 1e-6),
    ),
    layers=indexer,
)


def bench_indexer_topk(benchmark, contestant):
    benchmark(contestant)
