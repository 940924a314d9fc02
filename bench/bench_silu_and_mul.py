"""The activation between the two products of an expert, whose down projection has K columns."""

from collections.abc import Callable, Iterator

import torch
from moela.bench.suite import Baseline, Bench, Inputs, Part
from moela.shapes import LinearShape
from torch import Tensor


def dims(layer: LinearShape, tokens: int, dtype: str) -> dict[str, object]:
    return {"M": tokens, "K": layer.K}


def parts(inputs: Inputs) -> Iterator[Part]:
    """Activations are small: one part."""
    yield inputs, lambda outputs: outputs


def in_model_code(x: Tensor) -> Tensor:
    """As modeling files of DeepSeek-V3 have it: two roundings to x's dtype."""
    gate, up = x.chunk(2, -1)
    return torch.nn.functional.silu(gate) * up


def eager(inputs: Inputs) -> Callable[[], Tensor]:
    return lambda: in_model_code(inputs["x"])


def compiled(inputs: Inputs) -> Callable[[], Tensor]:
    torch._dynamo.reset()  # each case is compiled for its own shape
    fast = torch.compile(in_model_code, dynamic=False)
    fast(inputs["x"])
    return lambda: fast(inputs["x"])


BENCH = Bench(
    op="silu_and_mul",
    dtypes=("bf16",),
    has_tokens=True,
    dims=dims,
    item_bytes=lambda dtype: {"x_bytes": 2},
    parts=parts,
    baselines=(
        Baseline("torch", "silu(gate) * up in plain torch", eager, 1e-2),
        Baseline("torch-compile", "the same under torch.compile", compiled, 1e-2),
    ),
)


def bench_silu_and_mul(benchmark, contestant):
    benchmark(contestant)
