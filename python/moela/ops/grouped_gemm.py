"""GEMM of rows that are sorted by expert, each expert with its own weight."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from moela.ops import _check
from moela.ops._grouped import num_rows, offsets_of, rows_in_groups, split_rows
from moela.ops._spec import Autograd, OpSpec, register, rounding
from moela.reference import grouped_gemm as reference
from moela.reference.grouped_gemm import groups

OP = "grouped_gemm"


def grouped_gemm(a: Tensor, b: Tensor, expert_offsets: Tensor) -> Tensor:
    """Compute ``d[r] = a[r] @ b[e].T`` for the rows r of each expert e.

    The rows of expert e are those from expert_offsets[e] up to, not including, expert_offsets[e + 1].

    Args:
        a: [M, K] bfloat16, float16 or float32, K contiguous, rows may be strided. M may be 0.
        b: [E, N, K] of a's dtype, K or N contiguous (a checkpoint's [E, K, N] is `b.mT`), other strides free.
        expert_offsets: [E + 1] int32, non-decreasing, within [0, M]; groups may be empty and need no
            alignment. Its values are checked on the CPU, on a GPU under MOELA_DEBUG only.

    Returns:
        d: [M, N] of a's dtype, contiguous. Rows outside every group are zero; the `_out` variant leaves them
        as they are.

    Numerics: float32 sums, rounded once: |error| <= u |d| + 2^-20 sum_k |a||b| with u the unit roundoff of
        the dtype. Row r of d depends on row r of a and its expert's weight only (batch-invariant). Values in
        rows outside every group, and weights of experts without rows, do not matter. Differentiable with
        respect to a and b, once.

    Source: grouped GEMM of dropless experts: MegaBlocks, arXiv 2211.15841.
    """
    return torch.ops.moela.grouped_gemm(a, b, expert_offsets)


def grouped_gemm_out(a: Tensor, b: Tensor, expert_offsets: Tensor, *, d: Tensor) -> None:
    """`grouped_gemm` into `d`: [M, N] of a's dtype with contiguous rows, which may be strided."""
    torch.ops.moela.grouped_gemm_out(a, b, expert_offsets, d=d)


def _check_args(a, b, expert_offsets) -> None:
    _check.expect_dim(OP, "a", a, 2)
    _check.expect_dtype(OP, "a", a.dtype, _check.FLOAT_DTYPES)
    _check.expect_last_dim_contiguous(OP, "a", a)
    _check.expect_dim(OP, "b", b, 3)
    _check.expect(
        b.dtype == a.dtype, OP, "b", f"{_check.dtype_name(a.dtype)} (that of a)", _check.dtype_name(b.dtype)
    )
    M, K = a.shape
    _check.expect(b.size(2) == K, OP, "b", f"K={K} (that of a)", f"K={b.size(2)}")
    _expect_n_or_k_contiguous(b)
    _check.expect_device(OP, "b", b, a.device, "a")
    _check.expect_offsets(OP, expert_offsets, b.size(0), M, "a", a)


def _expect_n_or_k_contiguous(b: Tensor) -> None:
    ok = b.size(2) <= 1 or b.stride(2) == 1 or b.size(1) <= 1 or b.stride(1) == 1
    _check.expect(
        ok,
        OP,
        "b",
        "stride 1 in one of its last two dimensions",
        f"strides {b.stride(1)} and {b.stride(2)}",
        "call .contiguous()",
    )


def _empty(a, b, expert_offsets) -> tuple[Tensor]:
    return (a.new_empty((a.size(0), b.size(1))),)


def make_inputs(
    M: int,
    N: int,
    K: int,
    E: int = 4,
    counts: Sequence[int] | None = None,
    first: int = 0,
    a_dtype: torch.dtype = torch.bfloat16,
    n_contiguous: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """counts: rows of each expert, from row `first` on; None: all rows, split at random."""
    g = torch.Generator().manual_seed(seed)
    sizes = (K, N) if n_contiguous else (N, K)
    weights = [(torch.randn(sizes, generator=g) * max(K, 1) ** -0.5).to(a_dtype) for _ in range(E)]
    b = torch.stack(weights).to(device)
    return {
        "a": torch.randn(M, K, generator=g).to(a_dtype).to(device),
        "b": b.mT if n_contiguous else b,
        "expert_offsets": offsets_of(split_rows(M, E) if counts is None else counts, first).to(device),
    }


def _bound(inputs: dict[str, Any], accum: float) -> list[tuple[Tensor, Tensor]]:
    a, b = inputs["a"], inputs["b"]
    d = torch.zeros(a.size(0), b.size(1), dtype=torch.float64)
    error = torch.zeros_like(d)
    for expert, rows in groups(inputs["expert_offsets"]):
        left, right = a[rows].double(), b[expert].double().T
        d[rows] = left @ right
        error[rows] = rounding(d[rows], a.dtype) + accum * (left.abs() @ right.abs()).cpu()
    return [(d, error)]


def _setup_context(ctx, inputs, keyword_only_inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    a, b, expert_offsets = ctx.saved_tensors
    grad = grad.contiguous()  # that of a sum is one number with strides of 0
    needs_a, needs_b = ctx.needs_input_grad[:2]
    grad_a = torch.ops.moela.grouped_gemm(grad, b.mT, expert_offsets) if needs_a else None
    grad_b = torch.ops.moela.grouped_gemm_wgrad(grad, a, expert_offsets) if needs_b else None
    return grad_a, grad_b, None


def _flops(M, N, K, E=4, counts=None, **_: Any) -> int:
    return 2 * num_rows(M, E, counts)[0] * N * K


def _bytes(M, N, K, E=4, counts=None, a_bytes=2, **_: Any) -> int:
    rows, experts = num_rows(M, E, counts)
    return a_bytes * (rows * (N + K) + experts * N * K) + 4 * (E + 1)


FP16, FP32 = torch.float16, torch.float32

register(
    OpSpec(
        name=OP,
        schema="Tensor a, Tensor b, Tensor expert_offsets",
        outputs=("d",),
        dtype_arg=None,
        check=_check_args,
        empty=_empty,
        reference=reference,
        public=grouped_gemm,
        make_inputs=make_inputs,
        bound=_bound,
        cases=(
            {"M": 0, "N": 40, "K": 64},
            {"M": 1, "N": 128, "K": 128, "E": 1},
            {"M": 5, "N": 33, "K": 127, "a_dtype": FP32},
            {"M": 9, "N": 136, "K": 64, "n_contiguous": True},
            {"M": 13, "N": 40, "K": 200, "E": 3, "counts": (4, 0, 7), "first": 1, "a_dtype": FP16},
            {"M": 40, "N": 24, "K": 72, "E": 2, "counts": (0, 17), "n_contiguous": True, "a_dtype": FP32},
            {"M": 131, "N": 192, "K": 256, "E": 5, "counts": (65, 0, 1, 64, 1)},
        ),
        flops=_flops,
        bytes=_bytes,
        strided_out=True,
        batch_args=("a",),
        written=lambda a, b, expert_offsets: rows_in_groups(expert_offsets),
        autograd=Autograd(_setup_context, _backward),
    )
)
