"""The cast of the activations that enter the linear layers of a model."""

from collections.abc import Iterator

from moela.bench.suite import Bench, Inputs, Part, in_torch
from moela.shapes import LinearShape


def dims(layer: LinearShape, tokens: int, dtype: str) -> dict[str, object]:
    return {"M": tokens, "K": layer.K}


def parts(inputs: Inputs) -> Iterator[Part]:
    """Activations are small: one part."""
    yield inputs, lambda outputs: outputs


BENCH = Bench(
    op="per_token_group_quant_fp8",
    dtypes=("bf16",),
    has_tokens=True,
    dims=dims,
    item_bytes=lambda dtype: {"x_bytes": 2},
    parts=parts,
    baselines=in_torch("per_token_group_quant_fp8"),
)


def bench_per_token_group_quant_fp8(benchmark, contestant):
    benchmark(contestant)
