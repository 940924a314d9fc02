"""grouped_gemm_wgrad: the gradients of the two weights of a model's routed experts."""

from collections.abc import Callable, Iterator

import torch
from moela.bench import grouped, routing
from moela.bench.bench_grouped_gemm import DTYPES, dims
from moela.bench.suite import Baseline, Bench, Inputs, Outputs, Part, row_parts
from moela.reference.grouped_gemm import groups
from torch import Tensor
from torch.nn.functional import grouped_mm


def parts(inputs: Inputs) -> Iterator[Part]:
    """Rows of one expert's gradient; those of experts without rows too."""
    offsets = inputs["expert_offsets"]
    N, K = inputs["grad"].size(1), inputs["a"].size(1)
    for expert in range(len(offsets) - 1):
        begin, end = offsets[expert : expert + 2].tolist()
        for columns, _ in row_parts(N, K):
            part = {
                "grad": inputs["grad"][begin:end, columns],
                "a": inputs["a"][begin:end],
                "expert_offsets": offsets[expert : expert + 2] - begin,
            }

            def select(outputs: Outputs, expert=expert, columns=columns) -> Outputs:
                return (outputs[0][expert : expert + 1, columns],)

            yield part, select


def torch_grouped(inputs: Inputs) -> Callable[[], Tensor]:
    grad, a, offs = inputs["grad"], inputs["a"], inputs["expert_offsets"][1:]
    return lambda: grouped_mm(grad.T, a, offs=offs)


def torch_loop(inputs: Inputs) -> Callable[[], Tensor]:
    grad, a = inputs["grad"], inputs["a"]
    rows_of = groups(inputs["expert_offsets"])
    num_experts = len(inputs["expert_offsets"]) - 1

    def call() -> Tensor:
        grad_b = a.new_zeros(num_experts, grad.size(1), a.size(1))
        for expert, rows in rows_of:
            torch.mm(grad[rows].T, a[rows], out=grad_b[expert])
        return grad_b

    return call


BENCH = Bench(
    op="grouped_gemm_wgrad",
    dtypes=tuple(DTYPES),
    dtype_option="weights",
    has_tokens=True,
    has_routing=True,
    layers=routing.expert_linears,
    dims=dims,
    item_bytes=lambda dtype: {"a_bytes": DTYPES[dtype].itemsize},
    parts=parts,
    baselines=(
        Baseline("torch", "torch's grouped_mm", torch_grouped, grouped.LOSSY),
        Baseline("torch-loop", "a product per expert", torch_loop, grouped.LOSSY),
    ),
)


def bench_grouped_gemm_wgrad(benchmark, contestant):
    benchmark(contestant)
