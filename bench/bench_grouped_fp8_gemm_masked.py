"""grouped_fp8_gemm_masked on the two products of a model's routed experts, room for every token in each."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from moela.bench import grouped, routing
from moela.bench.bench_fp8_gemm import DTYPES, activations, why_no_deepgemm
from moela.bench.routing import Routed
from moela.bench.suite import Baseline, Bench, Inputs, Outputs, Part, row_parts
from torch import Tensor
from torch.nn.functional import linear


def dims(layer: Routed, tokens: int, dtype: str) -> dict[str, Any]:
    """A token has an expert once, so `tokens` rows are enough for each."""
    return grouped.dims(layer, tokens) | {"M": tokens, "a_dtype": DTYPES[dtype]}


def parts(inputs: Inputs) -> Iterator[Part]:
    """All rows of one expert by a part of its weight."""
    _, N, K = inputs["b"].shape
    for e in range(len(inputs["b"])):
        one = slice(e, e + 1)
        for columns, sf_rows in row_parts(N, K):
            part = inputs | {name: inputs[name][one] for name in ("a", "expert_counts")}
            part["sf_a"] = None if inputs["sf_a"] is None else inputs["sf_a"][one]
            part |= {"b": inputs["b"][one, columns], "sf_b": inputs["sf_b"][one, sf_rows]}

            def select(outputs: Outputs, one=one, columns=columns) -> Outputs:
                return (outputs[0][one, :, columns],)

            yield part, select


def torch_bmm(inputs: Inputs) -> Callable[[], Tensor]:
    """All rows of every expert, with those that do not count cleared ahead of the clock."""
    a, b = activations_of_experts(inputs), grouped.dequantized_weights(inputs)
    row = torch.arange(a.size(1), device=a.device)[None, :, None]
    a = a.where(row < inputs["expert_counts"][:, None, None], 0)
    return lambda: torch.bmm(a, b.mT)


def torch_loop(inputs: Inputs) -> Callable[[], Tensor]:
    """The rows that count, which are known on the host ahead of the clock."""
    a, b = activations_of_experts(inputs), grouped.dequantized_weights(inputs)
    counts = inputs["expert_counts"].tolist()

    def call() -> Tensor:
        d = a.new_zeros((*a.shape[:2], b.size(1)))
        for e, count in enumerate(counts):
            if count:
                d[e, :count] = linear(a[e, :count], b[e])
        return d

    return call


def activations_of_experts(inputs: Inputs) -> Tensor:
    """[E, Mmax, K] bfloat16."""
    flat = {name: None if inputs[name] is None else inputs[name].flatten(0, 1) for name in ("a", "sf_a")}
    return activations(flat, torch.bfloat16).view(inputs["a"].shape)


def deepgemm(inputs: Inputs) -> Callable[[], Tensor]:
    if inputs["sf_a"] is None:
        raise ValueError("multiplies e4m3 activations only; --activations e4m3")
    import deep_gemm

    a, b, counts = inputs["a"], inputs["b"], inputs["expert_counts"]
    expected = -(-int(counts.sum()) // len(counts))
    d = a.new_zeros((*a.shape[:2], b.size(1)), dtype=torch.bfloat16)

    def call() -> Tensor:
        deep_gemm.m_grouped_fp8_gemm_nt_masked((a, inputs["sf_a"]), (b, inputs["sf_b"]), d, counts, expected)
        return d

    return call


BENCH = Bench(
    op="grouped_fp8_gemm_masked",
    dtypes=tuple(DTYPES),
    has_tokens=True,
    has_routing=True,
    layers=routing.expert_linears,
    dims=dims,
    item_bytes=lambda dtype: {"a_bytes": DTYPES[dtype].itemsize},
    parts=parts,
    baselines=(
        Baseline("torch", "bmm of all rows, weights bfloat16 ahead", torch_bmm, grouped.LOSSY),
        Baseline("torch-loop", "a linear per expert, weights bfloat16 ahead", torch_loop, grouped.LOSSY),
        Baseline("deepgemm", "DeepGEMM's masked layout", deepgemm, grouped.LOSSY, why_no_deepgemm),
    ),
)


def bench_grouped_fp8_gemm_masked(benchmark, contestant):
    benchmark(contestant)
