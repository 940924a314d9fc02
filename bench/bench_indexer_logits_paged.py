"""The lightning indexer's scores of a new token; --tokens says how many the cache holds."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from moela.bench.bench_indexer_logits import in_torch, indexer
from moela.bench.suite import Baseline, Bench, Inputs, Outputs, Part
from moela.reference.indexer_logits_paged import keys_of_request
from moela.shapes import IndexerShape


def dims(layer: IndexerShape, tokens: int, dtype: str) -> dict[str, Any]:
    return {"B": 1, "S": tokens, "H": layer.num_heads, "D": layer.dim, "hostile": False}


def parts(inputs: Inputs) -> Iterator[Part]:
    """There is one query."""
    yield inputs, lambda outputs: outputs


def converted(dtype: torch.dtype, in_every_call: bool = False) -> Callable[[Inputs], Callable[[], Outputs]]:
    """The keys in a wider type: beforehand, without pages, or from the cache in every call."""

    def prepare(inputs: Inputs) -> Callable[[], Outputs]:
        arguments = (inputs[name] for name in ("cache", "block_table", "seqlens"))
        codes, sf_k, _ = keys_of_request(*arguments, 0, inputs["max_seqlen"])
        q, weights = inputs["q"][0].to(dtype), inputs["weights"][0].to(dtype)
        k = codes if in_every_call else codes.to(dtype)
        return lambda: (in_torch(q, k.to(dtype), sf_k, weights)()[None],)

    return prepare


BENCH = Bench(
    op="indexer_logits_paged",
    dtypes=("e4m3",),
    has_tokens=True,
    dims=dims,
    item_bytes=lambda dtype: {},
    parts=parts,
    baselines=(
        Baseline("torch-bf16", "keys as bfloat16 beforehand, matmuls", converted(torch.bfloat16), 2e-2),
        Baseline("torch-fp32", "keys as float32 beforehand, matmuls", converted(torch.float32), 1e-5),
        Baseline("torch-codes", "codes to bfloat16 in every call", converted(torch.bfloat16, True), 2e-2),
    ),
    layers=indexer,
)


def bench_indexer_logits_paged(benchmark, contestant):
    benchmark(contestant)
