"""grouped_fp8_gemm on the two products of a model's routed experts, without padding between groups."""

from collections.abc import Callable
from typing import Any

import torch
from moela.bench import grouped, routing
from moela.bench.bench_fp8_gemm import DTYPES, activations, why_no_deepgemm
from moela.bench.routing import Routed
from moela.bench.suite import Baseline, Bench, Inputs
from torch import Tensor

DEEPGEMM_ROWS = 128  # its groups begin at multiples of this many rows


def dims(layer: Routed, tokens: int, dtype: str) -> dict[str, Any]:
    return grouped.dims(layer, tokens) | {"a_dtype": DTYPES[dtype]}


def dequantized(inputs: Inputs) -> grouped.Operands:
    return activations(inputs, torch.bfloat16), grouped.dequantized_weights(inputs)


def deepgemm(inputs: Inputs) -> Callable[[], Tensor]:
    if inputs["sf_a"] is None:
        raise ValueError("multiplies e4m3 activations only; --activations e4m3")
    import deep_gemm

    a, b, offsets = inputs["a"], inputs["b"], inputs["expert_offsets"]
    if (offsets % DEEPGEMM_ROWS).any():
        raise ValueError(f"wants groups of multiples of {DEEPGEMM_ROWS} rows")
    counts = offsets.diff()
    expert_of_row = torch.arange(len(counts), device=a.device, dtype=torch.int32).repeat_interleave(counts)
    d = a.new_empty((a.size(0), b.size(1)), dtype=torch.bfloat16)

    def call() -> Tensor:
        deep_gemm.m_grouped_fp8_gemm_nt_contiguous((a, inputs["sf_a"]), (b, inputs["sf_b"]), d, expert_of_row)
        return d

    return call


BENCH = Bench(
    op="grouped_fp8_gemm",
    dtypes=tuple(DTYPES),
    has_tokens=True,
    has_routing=True,
    layers=routing.expert_linears,
    dims=dims,
    item_bytes=lambda dtype: {"a_bytes": DTYPES[dtype].itemsize},
    parts=lambda inputs: grouped.expert_parts(inputs, scaled=True),
    baselines=(
        *grouped.in_torch(dequantized, ", weights dequantized to bfloat16 ahead"),
        Baseline("deepgemm", "DeepGEMM's contiguous layout", deepgemm, grouped.LOSSY, why_no_deepgemm),
    ),
)


def bench_grouped_fp8_gemm(benchmark, contestant):
    benchmark(contestant)
