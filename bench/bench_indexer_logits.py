"""The lightning indexer's scores in a prefill: 64 queries over --tokens keys, of which each sees all."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from moela.bench.suite import Baseline, Bench, Inputs, Outputs, Part
from moela.shapes import IndexerShape, ModelShape
from torch import Tensor

QUERIES = 64


def indexer(model: ModelShape) -> Mapping[str, IndexerShape]:
    """The indexer of a layer; most models have none."""
    return {"indexer": model.indexer} if model.indexer else {}


def dims(layer: IndexerShape, tokens: int, dtype: str) -> dict[str, Any]:
    return {"T": QUERIES, "S": tokens, "H": layer.num_heads, "D": layer.dim, "hostile": False}


def parts(inputs: Inputs) -> Iterator[Part]:
    """A few queries: the exact logits of all take minutes."""
    few = slice(0, 2)
    rows = {name: inputs[name][few] for name in ("q", "weights", "ks", "ke")}
    yield inputs | rows, lambda outputs: tuple(t[few] for t in outputs)


def in_torch(q: Tensor, k: Tensor, sf_k: Tensor, weights: Tensor) -> Callable[[], Tensor]:
    """q [T, H, D], k [S, D], weights [T, H] of one dtype; one query after the other."""

    def score() -> Tensor:
        rows = [(w @ (heads @ k.T).relu_()).float() for heads, w in zip(q, weights, strict=True)]
        return torch.stack(rows) * sf_k

    return score


def converted(dtype: torch.dtype) -> Callable[[Inputs], Callable[[], Outputs]]:
    """The keys in a wider type beforehand, which takes two or four times the memory."""

    def prepare(inputs: Inputs) -> Callable[[], Outputs]:
        q, k, weights = (inputs[name].to(dtype) for name in ("q", "k", "weights"))
        score = in_torch(q, k, inputs["sf_k"], weights)
        return lambda: (score(),)

    return prepare


BENCH = Bench(
    op="indexer_logits",
    dtypes=("e4m3",),
    has_tokens=True,
    dims=dims,
    item_bytes=lambda dtype: {},
    parts=parts,
    baselines=(
        Baseline("torch-bf16", "keys as bfloat16, matmul, relu and matmul", converted(torch.bfloat16), 2e-2),
        Baseline("torch-fp32", "keys as float32, matmul, relu and matmul", converted(torch.float32), 1e-5),
    ),
    layers=indexer,
)


def bench_indexer_logits(benchmark, contestant):
    benchmark(contestant)
