"""Two states of latent attention as one: what is left of a split over keys."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from moela.bench.suite import Baseline, Bench, Inputs, Outputs, Part
from moela.shapes import MlaShape, ModelShape


def attention(model: ModelShape) -> Mapping[str, MlaShape]:
    """The attention of a layer; a model without latent attention has none."""
    return {"mla": model.mla} if model.mla else {}


def dims(layer: MlaShape, tokens: int, dtype: str) -> dict[str, Any]:
    return {"T": tokens, "H": layer.num_heads, "D": layer.kv_lora_rank, "hostile": False}


def parts(inputs: Inputs) -> Iterator[Part]:
    """256 tokens at a time."""
    for first in range(0, inputs["lse_a"].size(0), 256):
        rows = slice(first, first + 256)
        yield (
            {k: t[rows] for k, t in inputs.items()},
            lambda outputs, rows=rows: tuple(t[rows] for t in outputs),
        )


def eager(inputs: Inputs) -> Callable[[], Outputs]:
    """As model code writes it, in float32."""

    def merge() -> Outputs:
        lse = torch.logaddexp(inputs["lse_a"], inputs["lse_b"])
        weight_a, weight_b = ((inputs[n] - lse).exp().unsqueeze(-1) for n in ("lse_a", "lse_b"))
        return (weight_a * inputs["out_a"] + weight_b * inputs["out_b"]).to(inputs["out_a"].dtype), lse

    return merge


BENCH = Bench(
    op="merge_states",
    dtypes=("bf16",),
    has_tokens=True,
    dims=dims,
    item_bytes=lambda dtype: {"x_bytes": 2},
    parts=parts,
    baselines=(Baseline("torch", "logaddexp, exp, multiply and add", eager, 1e-2),),
    layers=attention,
)


def bench_merge_states(benchmark, contestant):
    benchmark(contestant)
