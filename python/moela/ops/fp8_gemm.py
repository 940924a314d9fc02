"""FP8 GEMM with 128 x 128 weight scales and, for FP8 activations, 1 x 128 activation scales."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from moela.ops import _check
from moela.ops._spec import Autograd, OpSpec, register, rounding
from moela.reference import fp8_gemm as reference
from moela.reference.fp8_gemm import BLOCK, dequantize_blocks, dequantize_rows

OP = "fp8_gemm"
SF_DTYPES = (torch.float32, torch.bfloat16, torch.float8_e8m0fnu)


def fp8_gemm(
    a: Tensor,
    sf_a: Tensor | None,
    b: Tensor,
    sf_b: Tensor,
    *,
    bias: Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """Compute ``d = (a * sf_a) @ (b * sf_b).T + bias``.

    Args:
        a: [M, K] float8_e4m3fn with `sf_a`, or bfloat16, float16 or float32 without (weight-only). K
            contiguous, rows may be strided. M may be 0.
        sf_a: [M, ceil(K/128)] float32, any strides; None for the weight-only form.
        b: [N, K] float8_e4m3fn, K contiguous, rows may be strided: a checkpoint's own layout. Any N and K.
        sf_b: [ceil(N/128), ceil(K/128)] float32, bfloat16 or float8_e8m0fnu: a checkpoint's
            `weight_scale_inv`.
        bias: [N] float32, bfloat16 or float16, added before the rounding.
        out_dtype: bfloat16, float16 or float32.

    Returns:
        d: [M, N] of `out_dtype`, contiguous. Differentiable with respect to an `a` that is not FP8, for
        weights that are frozen; its gradient is d's times b * sf_b, these rounded to d's dtype.

    Numerics: products of float32 operands are summed in float32, times the scale factors, and rounded once:
        |error| <= u |d| + 2^-20 sum_k |a||b| with u the unit roundoff of `out_dtype`. On the CPU the order of
        the sum is fixed for any number of threads. There the operands are `b * sf_b` and `a * sf_a`, rounded
        to float32, and the bits are the same on every instruction set but avx512_bf16 and amx_bf16, which
        multiply e4m3 and bfloat16 exactly and scale sums of 128 columns (docs/adr/0011); they lose what is
        below 2^-109 of the largest element of a row. Row i of d depends on row i of a only
        (batch-invariant). A NaN in a row of b makes that column of d NaN.

    Source: DeepSeek-V3 technical report (arXiv 2412.19437), section 3.3.
    """
    return torch.ops.moela.fp8_gemm(a, sf_a, b, sf_b, bias=bias, out_dtype=out_dtype)


def fp8_gemm_out(
    a: Tensor, sf_a: Tensor | None, b: Tensor, sf_b: Tensor, *, bias: Tensor | None = None, d: Tensor
) -> None:
    """`fp8_gemm` into `d`: [M, N] bfloat16, float16 or float32 with contiguous rows, which may be strided."""
    torch.ops.moela.fp8_gemm_out(a, sf_a, b, sf_b, bias=bias, d=d)


def check_operands(op, a, sf_a, b, sf_b, a_dim=2, b_dim=2) -> None:
    """What the FP8 products have in common: `a` and `b` are matrices, or one per expert."""
    _check.expect_dim(op, "a", a, a_dim)
    _check.expect_dtype(op, "a", a.dtype, (torch.float8_e4m3fn, *_check.FLOAT_DTYPES))
    _check.expect_last_dim_contiguous(op, "a", a)
    _check.expect_dim(op, "b", b, b_dim)
    _check.expect_dtype(op, "b", b.dtype, (torch.float8_e4m3fn,))
    K, N = a.size(-1), b.size(-2)
    blocks_k, blocks_n = (K + BLOCK - 1) // BLOCK, (N + BLOCK - 1) // BLOCK
    if a_dim == 3:
        _check.expect(b.size(0) == a.size(0), op, "b", f"E={a.size(0)} (that of a)", f"E={b.size(0)}")
    _check.expect(b.size(-1) == K, op, "b", f"K={K} (that of a)", f"K={b.size(-1)}")
    _check.expect_last_dim_contiguous(op, "b", b)
    _check.expect_device(op, "b", b, a.device, "a")
    if a.dtype == torch.float8_e4m3fn:
        _check.expect(sf_a is not None, op, "sf_a", "a tensor because a is float8_e4m3fn", "None")
        _check.expect_dtype(op, "sf_a", sf_a.dtype, (torch.float32,))
        _check.expect_shape(op, "sf_a", sf_a, (*a.shape[:-1], blocks_k))
        _check.expect_device(op, "sf_a", sf_a, a.device, "a")
    else:
        _check.expect(sf_a is None, op, "sf_a", f"None because a is {_check.dtype_name(a.dtype)}", "a tensor")
    _check.expect_dtype(op, "sf_b", sf_b.dtype, SF_DTYPES)
    _check.expect_shape(op, "sf_b", sf_b, (*b.shape[:-2], blocks_n, blocks_k))
    _check.expect_device(op, "sf_b", sf_b, a.device, "a")


def _check_args(a, sf_a, b, sf_b, *, bias=None, out_dtype=torch.bfloat16) -> None:
    check_operands(OP, a, sf_a, b, sf_b)
    if bias is not None:
        _check.expect_dtype(OP, "bias", bias.dtype, _check.FLOAT_DTYPES)
        _check.expect_shape(OP, "bias", bias, (b.size(0),))
        _check.expect_device(OP, "bias", bias, a.device, "a")
    _check.expect_dtype(OP, "out_dtype", out_dtype, _check.FLOAT_DTYPES)


def cuda_limits(a, sf_a, b, *_: Any, **__: Any) -> str | None:
    """Of this op and of the grouped ones: what the CUDA kernels do not take."""
    if a.dtype != torch.float8_e4m3fn:
        return f"it multiplies float8_e4m3fn activations, a is {_check.dtype_name(a.dtype)}"
    if a.size(-1) == 0:
        return "K is 0"
    for name, t in (("a", a), ("b", b)):
        if t.data_ptr() % 16 or any(stride % 16 for stride in t.stride()[:-1]):
            return f"TMA reads rows that start at multiples of 16 bytes, those of {name} do not"
    return None


def _empty(a, sf_a, b, sf_b, *, bias=None, out_dtype=torch.bfloat16) -> tuple[Tensor]:
    return (a.new_empty((a.size(0), b.size(0)), dtype=out_dtype),)


def frozen_weights(op: str, product: Callable[..., Tensor]) -> Autograd:
    """The derivative with respect to `a` of this op and of the grouped one.

    product: (grad, w, *expert_offsets) -> grad @ w, with the dequantized weights w [..., N, K].
    """

    def setup_context(ctx, inputs, keyword_only_inputs, output) -> None:
        a, _, b, sf_b, *expert_offsets = inputs
        ctx.save_for_backward(b, sf_b, *expert_offsets)
        ctx.a_dtype = a.dtype
        others = {"b": b, "sf_b": sf_b, "bias": keyword_only_inputs.get("bias")}
        ctx.trained = [name for name, t in others.items() if t is not None and t.requires_grad]

    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        for name in ctx.trained:
            todo = "add it to the result" if name == "bias" else f"call {name}.requires_grad_(False)"
            raise NotImplementedError(f"{op}: {name}: has no derivative; {todo}")
        if ctx.a_dtype == torch.float8_e4m3fn:
            raise NotImplementedError(f"{op}: a: has no derivative because it is float8_e4m3fn")
        b, sf_b, *expert_offsets = ctx.saved_tensors
        w = torch.ops.moela.per_block_dequant_fp8(b, sf_b, grad.dtype)
        grad_a = product(grad.contiguous(), w, *expert_offsets).to(ctx.a_dtype)
        return (grad_a, *[None] * (3 + len(expert_offsets)))

    return Autograd(setup_context, backward)


def make_inputs(
    M: int,
    N: int,
    K: int,
    a_dtype: torch.dtype = torch.float8_e4m3fn,
    sf_dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype = torch.bfloat16,
    bias: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Weights as a checkpoint has them: normal, scaled so that each block's largest is near 448."""
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(M, K, generator=g)
    b = (torch.randn(N, K, generator=g) * 110).clamp(-448, 448).to(torch.float8_e4m3fn)
    sf_b = (torch.rand(-(-N // BLOCK), -(-K // BLOCK), generator=g) + 0.5) * 2.0**-12
    sf_a = None
    if a_dtype == torch.float8_e4m3fn:
        a = (a * 110).clamp(-448, 448)
        sf_a = ((torch.rand(M, -(-K // BLOCK), generator=g) + 0.5) * 2.0**-7).to(device)
    return {
        "a": a.to(a_dtype).to(device),
        "sf_a": sf_a,
        "b": b.to(device),
        "sf_b": sf_b.to(sf_dtype).to(device),
        "bias": torch.randn(N, generator=g).to(device) if bias else None,
        "out_dtype": out_dtype,
    }


def exact(a, sf_a, b, sf_b, bias=None, **_: Any) -> tuple[Tensor, Tensor]:
    """(d, sum_k |a||b| + |bias|) in float64, from the dequantized inputs."""
    left = a.double() if sf_a is None else dequantize_rows(a, sf_a, torch.float64)
    right = dequantize_blocks(b, sf_b, torch.float64)
    d, magnitude = left @ right.T, left.abs() @ right.abs().T
    return (d, magnitude) if bias is None else (d + bias.double(), magnitude + bias.double().abs())


def _bound(inputs: dict[str, Any], accum: float) -> list[tuple[Tensor, Tensor]]:
    d, magnitude = exact(**inputs)
    return [(d, rounding(d, inputs["out_dtype"]) + accum * magnitude)]


BF16, FP16, FP32, E8M0 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e8m0fnu

register(
    OpSpec(
        name=OP,
        schema="Tensor a, Tensor? sf_a, Tensor b, Tensor sf_b, *, Tensor? bias=None, ScalarType out_dtype=15",
        outputs=("d",),
        dtype_arg="out_dtype",
        check=_check_args,
        empty=_empty,
        reference=reference,
        public=fp8_gemm,
        make_inputs=make_inputs,
        bound=_bound,
        cases=(
            {"M": 0, "N": 128, "K": 128},
            {"M": 1, "N": 128, "K": 128, "a_dtype": BF16},
            {"M": 1, "N": 576, "K": 200},
            {"M": 2, "N": 40, "K": 384, "a_dtype": FP32, "out_dtype": FP32},
            {"M": 5, "N": 3884, "K": 129, "a_dtype": FP16, "out_dtype": FP16},
            {"M": 7, "N": 33, "K": 127, "a_dtype": BF16, "bias": True, "sf_dtype": BF16},
            {"M": 13, "N": 257, "K": 640, "bias": True, "out_dtype": FP32, "sf_dtype": E8M0},
            {"M": 63, "N": 128, "K": 256},
            {"M": 65, "N": 192, "K": 512, "a_dtype": BF16, "out_dtype": FP32},
        ),
        flops=lambda M, N, K, **_: 2 * M * N * K,
        bytes=lambda M, N, K, a_bytes=1, out_bytes=2, **_: (
            N * K + M * K * a_bytes + M * N * out_bytes + 4 * -(-N // BLOCK) * -(-K // BLOCK)
        ),
        cuda_limits=cuda_limits,
        strided_out=True,
        batch_args=("a", "sf_a"),
        autograd=frozen_weights(OP, torch.matmul),
    )
)
