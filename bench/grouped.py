"""What the benches of the grouped GEMMs share: their dims, their parts, and baselines without padding."""

from collections.abc import Callable, Iterator
from typing import Any

import moela
import torch
from moela.bench.routing import Routed
from moela.bench.suite import Baseline, Inputs, Outputs, Part, row_parts
from moela.reference.grouped_gemm import groups
from torch import Tensor
from torch.nn.functional import grouped_mm, linear

# Rounding weights, activations and result to bfloat16 gives 0.3 %.
LOSSY = 0.02
Operands = tuple[Tensor, Tensor]


def dims(layer: Routed, tokens: int) -> dict[str, Any]:
    """Rows are tokens times topk, sorted by expert."""
    counts = layer.expert_counts(tokens)
    return {
        "M": sum(counts),
        "N": layer.shape.N,
        "K": layer.shape.K,
        "E": layer.num_experts,
        "counts": counts,
    }


def expert_parts(inputs: Inputs, scaled: bool) -> Iterator[Part]:
    """Rows of one expert by a part of its weight."""
    _, N, K = inputs["b"].shape
    for expert, rows in groups(inputs["expert_offsets"]):
        for columns, sf_rows in row_parts(N, K):
            part = inputs | {
                "a": inputs["a"][rows],
                "b": inputs["b"][expert : expert + 1, columns],
                "expert_offsets": inputs["expert_offsets"][expert : expert + 2] - rows.start,
            }
            if scaled:
                part["sf_a"] = None if inputs["sf_a"] is None else inputs["sf_a"][rows]
                part["sf_b"] = inputs["sf_b"][expert : expert + 1, sf_rows]

            def select(outputs: Outputs, rows=rows, columns=columns) -> Outputs:
                return (outputs[0][rows, columns],)

            yield part, select


def dequantized_weights(inputs: Inputs) -> Tensor:
    """[E, N, K] bfloat16."""
    return moela.per_block_dequant_fp8(inputs["b"], inputs["sf_b"], torch.bfloat16)


def torch_grouped(operands: Callable[[Inputs], Operands]) -> Callable[[Inputs], Callable[[], Tensor]]:
    def prepare(inputs: Inputs) -> Callable[[], Tensor]:
        (a, b), offs = operands(inputs), inputs["expert_offsets"][1:]
        return lambda: grouped_mm(a, b.mT, offs=offs)

    return prepare


def torch_loop(operands: Callable[[Inputs], Operands]) -> Callable[[Inputs], Callable[[], Tensor]]:
    """One product per expert, as modeling files do; offsets known on the host ahead of the clock."""

    def prepare(inputs: Inputs) -> Callable[[], Tensor]:
        a, b = operands(inputs)
        rows_of = groups(inputs["expert_offsets"])

        def call() -> Tensor:
            d = a.new_empty(a.size(0), b.size(1))
            for expert, rows in rows_of:
                d[rows] = linear(a[rows], b[expert])
            return d

        return call

    return prepare


def in_torch(operands: Callable[[Inputs], Operands], what: str) -> tuple[Baseline, ...]:
    """`operands`: inputs -> (a [M, K], b [E, N, K])."""
    return (
        Baseline("torch", f"torch's grouped_mm{what}", torch_grouped(operands), LOSSY),
        Baseline("torch-loop", f"a linear per expert{what}", torch_loop(operands), LOSSY),
    )
