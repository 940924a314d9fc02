"""grouped_gemm on the two products of a model's routed experts, without padding between groups."""

from typing import Any

import torch
from moela.bench import grouped, routing
from moela.bench.routing import Routed
from moela.bench.suite import Bench

DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}


def dims(layer: Routed, tokens: int, dtype: str) -> dict[str, Any]:
    return grouped.dims(layer, tokens) | {"a_dtype": DTYPES[dtype]}


BENCH = Bench(
    op="grouped_gemm",
    dtypes=tuple(DTYPES),
    dtype_option="weights",
    has_tokens=True,
    has_routing=True,
    layers=routing.expert_linears,
    dims=dims,
    item_bytes=lambda dtype: {"a_bytes": DTYPES[dtype].itemsize},
    parts=lambda inputs: grouped.expert_parts(inputs, scaled=False),
    baselines=grouped.in_torch(lambda inputs: (inputs["a"], inputs["b"]), ""),
)


def bench_grouped_gemm(benchmark, contestant):
    benchmark(contestant)
