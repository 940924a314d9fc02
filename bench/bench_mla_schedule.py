"""The schedule of a decoding step of --tokens requests, which all layers share."""

from collections.abc import Callable
from typing import Any

from moela.bench.bench_merge_states import attention
from moela.bench.bench_moe_topk import parts
from moela.bench.suite import Baseline, Bench, Inputs, Outputs
from moela.reference import mla_schedule
from moela.shapes import MlaShape


def dims(layer: MlaShape, tokens: int, dtype: str) -> dict[str, Any]:
    return {"B": tokens, "S": 8192, "rows": layer.num_heads}


def eager(inputs: Inputs) -> Callable[[], Outputs]:
    """The definition: prefix sums and searches in torch."""
    return lambda: (mla_schedule(**inputs),)


BENCH = Bench(
    op="mla_schedule",
    dtypes=("int32",),
    has_tokens=True,
    dims=dims,
    item_bytes=lambda dtype: {},
    parts=parts,
    baselines=(Baseline("torch", "cumsum and searchsorted", eager, 0.0),),
    layers=attention,
)


def bench_mla_schedule(benchmark, contestant):
    benchmark(contestant)
