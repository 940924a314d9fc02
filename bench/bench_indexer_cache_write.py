"""New keys into the indexer's cache, cast to e4m3."""

from collections.abc import Callable
from typing import Any

from moela import reference
from moela.bench.bench_indexer_logits import indexer
from moela.bench.bench_moe_topk import parts
from moela.bench.suite import Baseline, Bench, Inputs, Outputs
from moela.shapes import IndexerShape


def dims(layer: IndexerShape, tokens: int, dtype: str) -> dict[str, Any]:
    return {"T": tokens, "D": layer.dim, "hostile": False}


def eager(inputs: Inputs) -> Callable[[], Outputs]:
    cache = inputs["cache"].clone()

    def write() -> Outputs:
        reference.indexer_cache_write(**inputs | {"cache": cache})
        return (cache,)

    return write


BENCH = Bench(
    op="indexer_cache_write",
    dtypes=("bf16",),
    has_tokens=True,
    dims=dims,
    item_bytes=lambda dtype: {"x_bytes": 2},
    parts=parts,
    baselines=(Baseline("torch", "the definition in plain torch", eager, 0.0),),
    layers=indexer,
)


def bench_indexer_cache_write(benchmark, contestant):
    benchmark(contestant)
