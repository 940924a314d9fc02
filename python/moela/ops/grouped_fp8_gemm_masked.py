"""``fp8_gemm`` per expert with a fixed number of rows, of which a count on the device says how many hold."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from moela.ops import _check
from moela.ops._grouped import num_rows, split_rows
from moela.ops._spec import OpSpec, register, rounding
from moela.ops.fp8_gemm import check_operands, cuda_limits
from moela.ops.fp8_gemm import exact as exact_of_one
from moela.ops.grouped_fp8_gemm import expert_inputs
from moela.reference import grouped_fp8_gemm_masked as reference
from moela.reference.fp8_gemm import BLOCK

OP = "grouped_fp8_gemm_masked"


def grouped_fp8_gemm_masked(
    a: Tensor,
    sf_a: Tensor | None,
    b: Tensor,
    sf_b: Tensor,
    expert_counts: Tensor,
    *,
    out_dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """Compute ``d[e, r] = (a * sf_a)[e, r] @ (b[e] * sf_b[e]).T`` for r < expert_counts[e].

    Shapes do not depend on the routing and nothing waits for the host: for decoding in a CUDA graph.

    Args:
        a: [E, Mmax, K] float8_e4m3fn with `sf_a`, or bfloat16, float16 or float32 without (weight-only). K
            contiguous, other strides free. Mmax may be 0.
        sf_a: [E, Mmax, ceil(K/128)] float32, any strides; None for the weight-only form.
        b: [E, N, K] float8_e4m3fn, K contiguous, other strides free. Any N and K.
        sf_b: [E, ceil(N/128), ceil(K/128)] float32, bfloat16 or float8_e8m0fnu, any strides.
        expert_counts: [E] int32 within [0, Mmax]. Its values are checked on the CPU, on a GPU under
            MOELA_DEBUG only.
        out_dtype: bfloat16, float16 or float32.

    Returns:
        d: [E, Mmax, N] of `out_dtype`, contiguous. Rows from an expert's count on are zero; the `_out`
        variant leaves them as they are.

    Numerics: those of `fp8_gemm`, |error| <= u |d| + 2^-20 sum_k |a||b|, and its bits for each expert. What
        rows from the count on hold, and weights of experts without rows, do not matter.

    Source: DeepSeek-V3 technical report (arXiv 2412.19437), section 3.3; rows per expert as DeepEP's
        low-latency dispatch leaves them.
    """
    return torch.ops.moela.grouped_fp8_gemm_masked(a, sf_a, b, sf_b, expert_counts, out_dtype=out_dtype)


def grouped_fp8_gemm_masked_out(
    a: Tensor, sf_a: Tensor | None, b: Tensor, sf_b: Tensor, expert_counts: Tensor, *, d: Tensor
) -> None:
    """`grouped_fp8_gemm_masked` into `d`: [E, Mmax, N] with contiguous rows; only rows that count change."""
    torch.ops.moela.grouped_fp8_gemm_masked_out(a, sf_a, b, sf_b, expert_counts, d=d)


def _check_args(a, sf_a, b, sf_b, expert_counts, *, out_dtype=torch.bfloat16) -> None:
    check_operands(OP, a, sf_a, b, sf_b, a_dim=3, b_dim=3)
    _check.expect_dtype(OP, "out_dtype", out_dtype, _check.FLOAT_DTYPES)
    _check.expect_counts(OP, expert_counts, a.size(0), a.size(1), "a", a)


def _empty(a, sf_a, b, sf_b, expert_counts, *, out_dtype=torch.bfloat16) -> tuple[Tensor]:
    return (a.new_empty((*a.shape[:2], b.size(1)), dtype=out_dtype),)


def make_inputs(
    M: int,
    N: int,
    K: int,
    E: int = 3,
    counts: Sequence[int] | None = None,
    a_dtype: torch.dtype = torch.float8_e4m3fn,
    sf_dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """M is Mmax. counts: rows of each expert; None: Mmax rows, split at random."""
    inputs = expert_inputs(E * M, N, K, E, a_dtype=a_dtype, sf_dtype=sf_dtype, seed=seed, device=device)
    for name in ("a", "sf_a"):
        if inputs[name] is not None:
            inputs[name] = inputs[name].view(E, M, inputs[name].size(1))
    counts = split_rows(M, E) if counts is None else counts
    expert_counts = torch.tensor(counts, dtype=torch.int32, device=device)
    return inputs | {"expert_counts": expert_counts, "out_dtype": out_dtype}


def _bound(inputs: dict[str, Any], accum: float) -> list[tuple[Tensor, Tensor]]:
    a, sf_a, b, sf_b, counts = (inputs[k] for k in ("a", "sf_a", "b", "sf_b", "expert_counts"))
    d = torch.zeros(*a.shape[:2], b.size(1), dtype=torch.float64)
    error = torch.zeros_like(d)
    for e, count in enumerate(counts.tolist()):
        sf_rows = None if sf_a is None else sf_a[e, :count]
        d[e, :count], magnitude = exact_of_one(a[e, :count], sf_rows, b[e], sf_b[e])
        error[e, :count] = rounding(d[e, :count], inputs["out_dtype"]) + accum * magnitude.cpu()
    return [(d, error)]


def _flops(M, N, K, E=3, counts=None, **_: Any) -> int:
    return 2 * num_rows(M, E, counts)[0] * N * K


def _bytes(M, N, K, E=3, counts=None, a_bytes=1, out_bytes=2, **_: Any) -> int:
    rows, experts = num_rows(M, E, counts)
    sf_bytes = 4 * -(-N // BLOCK) * -(-K // BLOCK)
    return rows * (K * a_bytes + N * out_bytes) + experts * (N * K + sf_bytes) + 4 * E


BF16, FP16, FP32, E8M0 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e8m0fnu

register(
    OpSpec(
        name=OP,
        schema=(
            "Tensor a, Tensor? sf_a, Tensor b, Tensor sf_b, Tensor expert_counts, *, ScalarType out_dtype=15"
        ),
        outputs=("d",),
        dtype_arg="out_dtype",
        check=_check_args,
        empty=_empty,
        reference=reference,
        public=grouped_fp8_gemm_masked,
        make_inputs=make_inputs,
        bound=_bound,
        cases=(
            {"M": 0, "N": 128, "K": 128},
            {"M": 1, "N": 128, "K": 128, "E": 1, "a_dtype": BF16},
            {"M": 5, "N": 40, "K": 200, "counts": (5, 0, 1)},
            {"M": 9, "N": 130, "K": 129, "a_dtype": FP16, "out_dtype": FP16, "sf_dtype": BF16},
            {"M": 7, "N": 257, "K": 384, "counts": (4, 0, 7), "sf_dtype": E8M0},
            {"M": 20, "N": 24, "K": 72, "E": 2, "counts": (0, 17), "a_dtype": FP32, "out_dtype": FP32},
            {"M": 66, "N": 192, "K": 256, "counts": (65, 1, 64)},
        ),
        flops=_flops,
        bytes=_bytes,
        strided_out=True,
        cuda_limits=cuda_limits,
        written=lambda a, sf_a, b, sf_b, expert_counts, **_: (None, expert_counts),
        to_train="to train, use grouped_fp8_gemm",
    )
)
