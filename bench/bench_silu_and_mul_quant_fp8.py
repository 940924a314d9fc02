"""The activation between the two products of an expert, with the cast to FP8."""

from collections.abc import Callable

import torch
from moela import reference
from moela.bench.bench_silu_and_mul import dims, parts
from moela.bench.suite import Baseline, Bench, Inputs
from torch import Tensor


def in_float32(x: Tensor) -> tuple[Tensor, Tensor]:
    gate, up = x.float().chunk(2, -1)
    return reference.per_token_group_quant_fp8(torch.nn.functional.silu(gate) * up)


def eager(inputs: Inputs) -> Callable[[], tuple[Tensor, Tensor]]:
    return lambda: in_float32(inputs["x"])


def compiled(inputs: Inputs) -> Callable[[], tuple[Tensor, Tensor]]:
    torch._dynamo.reset()  # each case is compiled for its own shape
    fast = torch.compile(in_float32, dynamic=False)
    fast(inputs["x"])
    return lambda: fast(inputs["x"])


BENCH = Bench(
    op="silu_and_mul_quant_fp8",
    dtypes=("bf16",),
    has_tokens=True,
    dims=dims,
    item_bytes=lambda dtype: {"x_bytes": 2},
    parts=parts,
    baselines=(
        Baseline("torch", "silu(gate) * up and the cast in plain torch", eager, 1e-3),
        Baseline("torch-compile", "the same under torch.compile", compiled, 1e-3),
    ),
)


def bench_silu_and_mul_quant_fp8(benchmark, contestant):
    benchmark(contestant)
