"""``fp8_gemm`` of rows that are sorted by expert, each expert with its own weight."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from moela.ops import _check
from moela.ops._grouped import num_rows, offsets_of, rows_in_groups, split_rows
from moela.ops._spec import OpSpec, register, rounding
from moela.ops.fp8_gemm import check_operands, cuda_limits, frozen_weights
from moela.ops.fp8_gemm import exact as exact_of_one
from moela.ops.fp8_gemm import make_inputs as make_inputs_of_one
from moela.reference import grouped_fp8_gemm as reference
from moela.reference.fp8_gemm import BLOCK
from moela.reference.grouped_gemm import groups

OP = "grouped_fp8_gemm"


def grouped_fp8_gemm(
    a: Tensor,
    sf_a: Tensor | None,
    b: Tensor,
    sf_b: Tensor,
    expert_offsets: Tensor,
    *,
    out_dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """Compute ``d[r] = (a * sf_a)[r] @ (b[e] * sf_b[e]).T`` for the rows r of each expert e.

    The rows of expert e are those from expert_offsets[e] up to, not including, expert_offsets[e + 1].

    Args:
        a: [M, K] float8_e4m3fn with `sf_a`, or bfloat16, float16 or float32 without (weight-only). K
            contiguous, rows may be strided. M may be 0.
        sf_a: [M, ceil(K/128)] float32, any strides; None for the weight-only form.
        b: [E, N, K] float8_e4m3fn, K contiguous, other strides free. Any N and K.
        sf_b: [E, ceil(N/128), ceil(K/128)] float32, bfloat16 or float8_e8m0fnu, any strides.
        expert_offsets: [E + 1] int32, non-decreasing, within [0, M]; groups may be empty and need no
            alignment. Its values are checked on the CPU, on a GPU under MOELA_DEBUG only.
        out_dtype: bfloat16, float16 or float32.

    Returns:
        d: [M, N] of `out_dtype`, contiguous. Rows outside every group are zero; the `_out` variant leaves
        them as they are. Differentiable with respect to an `a` that is not FP8, for weights that are frozen,
        as in `fp8_gemm`; backward holds all of b in d's dtype.

    Numerics: those of `fp8_gemm`, |error| <= u |d| + 2^-20 sum_k |a||b|; with one expert its bits. Row r of d
        depends on row r of a and its expert's weight only (batch-invariant). Values in rows outside every
        group, and weights of experts without rows, do not matter.

    Source: DeepSeek-V3 technical report (arXiv 2412.19437), section 3.3; groups without padding:
        MegaBlocks, arXiv 2211.15841.
    """
    return torch.ops.moela.grouped_fp8_gemm(a, sf_a, b, sf_b, expert_offsets, out_dtype=out_dtype)


def grouped_fp8_gemm_out(
    a: Tensor, sf_a: Tensor | None, b: Tensor, sf_b: Tensor, expert_offsets: Tensor, *, d: Tensor
) -> None:
    """`grouped_fp8_gemm` into `d`: [M, N] bfloat16, float16 or float32 with contiguous rows."""
    torch.ops.moela.grouped_fp8_gemm_out(a, sf_a, b, sf_b, expert_offsets, d=d)


def _check_args(a, sf_a, b, sf_b, expert_offsets, *, out_dtype=torch.bfloat16) -> None:
    check_operands(OP, a, sf_a, b, sf_b, b_dim=3)
    _check.expect_dtype(OP, "out_dtype", out_dtype, _check.FLOAT_DTYPES)
    _check.expect_offsets(OP, expert_offsets, b.size(0), a.size(0), "a", a)


def _empty(a, sf_a, b, sf_b, expert_offsets, *, out_dtype=torch.bfloat16) -> tuple[Tensor]:
    return (a.new_empty((a.size(0), b.size(1)), dtype=out_dtype),)


def expert_inputs(M: int, N: int, K: int, E: int, seed: int, **options: Any) -> dict[str, Any]:
    """The inputs of `fp8_gemm` with E weights, made one by one: at once they would take memory in float32."""
    inputs = make_inputs_of_one(M, 0, K, seed=seed, **options)
    experts = [make_inputs_of_one(0, N, K, seed=seed + 1 + e, **options) for e in range(E)]
    inputs |= {name: torch.stack([expert[name] for expert in experts]) for name in ("b", "sf_b")}
    del inputs["bias"]
    return inputs


def make_inputs(
    M: int,
    N: int,
    K: int,
    E: int = 4,
    counts: Sequence[int] | None = None,
    first: int = 0,
    a_dtype: torch.dtype = torch.float8_e4m3fn,
    sf_dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """counts: rows of each expert, from row `first` on; None: all rows, split at random."""
    inputs = expert_inputs(M, N, K, E, a_dtype=a_dtype, sf_dtype=sf_dtype, seed=seed, device=device)
    offsets = offsets_of(split_rows(M, E) if counts is None else counts, first).to(device)
    return inputs | {"expert_offsets": offsets, "out_dtype": out_dtype}


def _bound(inputs: dict[str, Any], accum: float) -> list[tuple[Tensor, Tensor]]:
    a, sf_a, b, sf_b, offsets = (inputs[k] for k in ("a", "sf_a", "b", "sf_b", "expert_offsets"))
    d = torch.zeros(a.size(0), b.size(1), dtype=torch.float64)
    error = torch.zeros_like(d)
    for expert, rows in groups(offsets):
        sf_rows = None if sf_a is None else sf_a[rows]
        d[rows], magnitude = exact_of_one(a[rows], sf_rows, b[expert], sf_b[expert])
        error[rows] = rounding(d[rows], inputs["out_dtype"]) + accum * magnitude.cpu()
    return [(d, error)]


def _flops(M, N, K, E=4, counts=None, **_: Any) -> int:
    return 2 * num_rows(M, E, counts)[0] * N * K


def _bytes(M, N, K, E=4, counts=None, a_bytes=1, out_bytes=2, **_: Any) -> int:
    rows, experts = num_rows(M, E, counts)
    sf_bytes = 4 * -(-N // BLOCK) * -(-K // BLOCK)
    return rows * (K * a_bytes + N * out_bytes) + experts * (N * K + sf_bytes) + 4 * (E + 1)


BF16, FP16, FP32, E8M0 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e8m0fnu


def _times_weights(grad: Tensor, w: Tensor, expert_offsets: Tensor) -> Tensor:
    """[M, N] and [E, N, K] -> [M, K]."""
    return torch.ops.moela.grouped_gemm(grad, w.mT, expert_offsets)


register(
    OpSpec(
        name=OP,
        schema=(
            "Tensor a, Tensor? sf_a, Tensor b, Tensor sf_b, Tensor expert_offsets, *, ScalarType out_dtype=15"
        ),
        outputs=("d",),
        dtype_arg="out_dtype",
        check=_check_args,
        empty=_empty,
        reference=reference,
        public=grouped_fp8_gemm,
        make_inputs=make_inputs,
        bound=_bound,
        cases=(
            {"M": 0, "N": 128, "K": 128},
            {"M": 1, "N": 128, "K": 128, "E": 1, "a_dtype": BF16},
            {"M": 5, "N": 40, "K": 200},
            {"M": 9, "N": 130, "K": 129, "a_dtype": FP16, "out_dtype": FP16, "sf_dtype": BF16},
            {"M": 13, "N": 257, "K": 384, "E": 3, "counts": (4, 0, 7), "first": 1, "sf_dtype": E8M0},
            {"M": 40, "N": 24, "K": 72, "E": 2, "counts": (0, 17), "a_dtype": FP32, "out_dtype": FP32},
            {"M": 131, "N": 192, "K": 256, "E": 5, "counts": (65, 0, 1, 64, 1)},
        ),
        flops=_flops,
        bytes=_bytes,
        strided_out=True,
        batch_args=("a", "sf_a"),
        cuda_limits=cuda_limits,
        written=lambda a, sf_a, b, sf_b, expert_offsets, **_: rows_in_groups(expert_offsets),
        autograd=frozen_weights(OP, _times_weights),
    )
)
