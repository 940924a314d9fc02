"""New keys into the indexer's cache, cast to e4m3."""

from typing import Any

from moela.bench.bench_indexer_logits import indexer
from moela.bench.bench_mla_cache_write import defined
from moela.bench.bench_moe_topk import parts
from moela.bench.suite import Bench
from moela.shapes import IndexerShape


def dims(layer: IndexerShape, tokens: int, dtype: str) -> dict[str, Any]:
    return {"T": tokens, "D": layer.dim, "hostile": False}


BENCH = Bench(
    op="indexer_cache_write",
    dtypes=("bf16",),
    has_tokens=True,
    dims=dims,
    item_bytes=lambda dtype: {"x_bytes": 2},
    parts=parts,
    baselines=(defined("indexer_cache_write"),),
    layers=indexer,
)


def bench_indexer_cache_write(benchmark, contestant):
    benchmark(contestant)
