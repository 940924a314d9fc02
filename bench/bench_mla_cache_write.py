"""New tokens into the latent cache, cast to e4m3."""

from collections.abc import Callable
from typing import Any

import torch
from moela.bench.bench_merge_states import attention
from moela.bench.bench_moe_topk import parts
from moela.bench.suite import Baseline, Bench, Inputs, Outputs
from moela.ops import SPECS
from moela.shapes import MlaShape


def dims(layer: MlaShape, tokens: int, dtype: str) -> dict[str, Any]:
    shape = {"T": tokens, "L": layer.kv_lora_rank, "R": layer.qk_rope_head_dim, "page_size": 64}
    return shape | {"cache_dtype": torch.uint8, "hostile": False}


def defined(op: str) -> Baseline:
    """The definition of an op that writes a cache, into one of its own."""

    def prepare(inputs: Inputs) -> Callable[[], Outputs]:
        cache = inputs["cache"].clone()
        return lambda: SPECS[op].reference(**inputs | {"cache": cache}) or (cache,)

    return Baseline("torch", "the definition in plain torch", prepare, 0.0)


BENCH = Bench(
    op="mla_cache_write",
    dtypes=("bf16",),
    has_tokens=True,
    dims=dims,
    item_bytes=lambda dtype: {"x_bytes": 2},
    parts=parts,
    baselines=(defined("mla_cache_write"),),
    layers=attention,
)


def bench_mla_cache_write(benchmark, contestant):
    benchmark(contestant)
