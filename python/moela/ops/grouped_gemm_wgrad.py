"""The gradient of the weights of ``grouped_gemm``: a product per expert, summed over its rows."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from moela.ops import _check
from moela.ops._grouped import num_rows, offsets_of, split_rows
from moela.ops._spec import OpSpec, register, rounding
from moela.reference import grouped_gemm_wgrad as reference
from moela.reference.grouped_gemm import groups

OP = "grouped_gemm_wgrad"


def grouped_gemm_wgrad(grad: Tensor, a: Tensor, expert_offsets: Tensor) -> Tensor:
    """Compute ``grad_b[e] = grad[rows of e].T @ a[rows of e]`` for each expert e.

    The rows of expert e are those from expert_offsets[e] up to, not including, expert_offsets[e + 1].

    Args:
        grad: [M, N] of a's dtype, N contiguous, rows may be strided. M may be 0.
        a: [M, K] bfloat16, float16 or float32, K contiguous, rows may be strided.
        expert_offsets: [E + 1] int32, non-decreasing, within [0, M]; groups may be empty and need no
            alignment. Its values are checked on the CPU, on a GPU under MOELA_DEBUG only.

    Returns:
        grad_b: [E, N, K] of a's dtype, contiguous; zero for an expert without rows.

    Numerics: float32 sums, rounded once: |error| <= u |grad_b| + 2^-20 sum_r |grad||a| with u the unit
        roundoff of the dtype. Values in rows outside every group do not matter.

    Source: the chain rule for ``grouped_gemm``; also called K-grouped.
    """
    return torch.ops.moela.grouped_gemm_wgrad(grad, a, expert_offsets)


def grouped_gemm_wgrad_out(grad: Tensor, a: Tensor, expert_offsets: Tensor, *, grad_b: Tensor) -> None:
    """`grouped_gemm_wgrad` into `grad_b`: [E, N, K] of a's dtype, contiguous; all of it is written."""
    torch.ops.moela.grouped_gemm_wgrad_out(grad, a, expert_offsets, grad_b=grad_b)


def _check_args(grad, a, expert_offsets) -> None:
    _check.expect_dim(OP, "grad", grad, 2)
    _check.expect_dtype(OP, "grad", grad.dtype, _check.FLOAT_DTYPES)
    _check.expect_last_dim_contiguous(OP, "grad", grad)
    _check.expect_dim(OP, "a", a, 2)
    wanted = f"{_check.dtype_name(grad.dtype)} (that of grad)"
    _check.expect(a.dtype == grad.dtype, OP, "a", wanted, _check.dtype_name(a.dtype))
    M = grad.size(0)
    _check.expect(a.size(0) == M, OP, "a", f"M={M} (that of grad)", f"M={a.size(0)}")
    _check.expect_last_dim_contiguous(OP, "a", a)
    _check.expect_device(OP, "a", a, grad.device, "grad")
    _check.expect_dim(OP, "expert_offsets", expert_offsets, 1)
    num_bounds = expert_offsets.size(0)
    _check.expect(num_bounds >= 1, OP, "expert_offsets", "at least one element", num_bounds)
    _check.expect_offsets(OP, expert_offsets, num_bounds - 1, M, "grad", grad)


def _empty(grad, a, expert_offsets) -> tuple[Tensor]:
    return (a.new_empty((expert_offsets.size(0) - 1, grad.size(1), a.size(1))),)


def make_inputs(
    M: int,
    N: int,
    K: int,
    E: int = 4,
    counts: Sequence[int] | None = None,
    first: int = 0,
    a_dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """counts: rows of each expert, from row `first` on; None: all rows, split at random."""
    g = torch.Generator().manual_seed(seed)
    return {
        "grad": torch.randn(M, N, generator=g).to(a_dtype).to(device),
        "a": torch.randn(M, K, generator=g).to(a_dtype).to(device),
        "expert_offsets": offsets_of(split_rows(M, E) if counts is None else counts, first).to(device),
    }


def _bound(inputs: dict[str, Any], accum: float) -> list[tuple[Tensor, Tensor]]:
    grad, a, offsets = inputs["grad"], inputs["a"], inputs["expert_offsets"]
    grad_b = torch.zeros(offsets.size(0) - 1, grad.size(1), a.size(1), dtype=torch.float64)
    error = torch.zeros_like(grad_b)
    for expert, rows in groups(offsets):
        left, right = grad[rows].double().T, a[rows].double()
        grad_b[expert] = left @ right
        error[expert] = rounding(grad_b[expert], a.dtype) + accum * (left.abs() @ right.abs()).cpu()
    return [(grad_b, error)]


def _flops(M, N, K, E=4, counts=None, **_: Any) -> int:
    return 2 * num_rows(M, E, counts)[0] * N * K


def _bytes(M, N, K, E=4, counts=None, a_bytes=2, **_: Any) -> int:
    return a_bytes * (num_rows(M, E, counts)[0] * (N + K) + E * N * K) + 4 * (E + 1)


FP16, FP32 = torch.float16, torch.float32

register(
    OpSpec(
        name=OP,
        schema="Tensor grad, Tensor a, Tensor expert_offsets",
        outputs=("grad_b",),
        dtype_arg=None,
        check=_check_args,
        empty=_empty,
        reference=reference,
        public=grouped_gemm_wgrad,
        make_inputs=make_inputs,
        bound=_bound,
        cases=(
            {"M": 0, "N": 40, "K": 64, "E": 2},
            {"M": 1, "N": 128, "K": 128, "E": 1},
            {"M": 5, "N": 33, "K": 127, "a_dtype": FP32},
            {"M": 13, "N": 40, "K": 200, "E": 3, "counts": (4, 0, 7), "first": 1, "a_dtype": FP16},
            {"M": 40, "N": 24, "K": 72, "E": 2, "counts": (0, 17), "a_dtype": FP32},
            {"M": 131, "N": 136, "K": 64, "E": 5, "counts": (65, 0, 1, 64, 1)},
        ),
        flops=_flops,
        bytes=_bytes,
    )
)
