"""The arithmetic of an expert layer: one op where there is one, else its steps."""

from collections.abc import Callable

import torch
from torch import Tensor

from moela.nn.gate import Gate, SwiGlu
from moela.ops import (
    _check,
    fused_experts,
    grouped_fp8_gemm,
    grouped_gemm,
    moe_permute,
    moe_unpermute,
    per_token_group_quant_fp8,
)
from moela.ops.fp8_gemm import SF_DTYPES
from moela.ops.fused_experts import QUANTIZATIONS
from moela.reference.fp8_gemm import BLOCK

NAME = "moela.nn.run_experts"
E4M3 = torch.float8_e4m3fn


def run_experts(
    x: Tensor,
    w13: Tensor,
    w2: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    *,
    sf_w13: Tensor | None = None,
    sf_w2: Tensor | None = None,
    b13: Tensor | None = None,
    b2: Tensor | None = None,
    gate: Gate = SwiGlu(),  # noqa: B008 (frozen)
    is_transposed: bool = False,
    post_norm: Callable[[Tensor], Tensor] | None = None,
    quantize_activations: str | None = None,
) -> Tensor:
    """Compute ``out[t] = sum_j topk_weights[t, j] * post_norm(h @ w2[e].T + b2[e])``, e = topk_ids[t, j].

    h = gate(x[t] @ w13[e].T + b13[e]). `moela.fused_experts` computes all of it where the gate is a SwiGlu,
    nothing stands after the second product, no gradient is asked for and, with FP8 weights, I is a multiple
    of 128 (else up begins a new scale block where the stacked matrix has none). What is left runs as
    moe_permute, grouped_gemm or grouped_fp8_gemm, gate, the second product and moe_unpermute.

    Args:
        x: [T, H] bfloat16, float16 or float32. T may be 0. Float weights of another dtype than x: x is cast
            to theirs, as under autocast.
        w13: [E, N1, H], a checkpoint's own: float8_e4m3fn, bfloat16, float16 or float32. With a SwiGlu
            N1 = 2 * I, the gate's rows first; another gate takes what it takes. Experts may be
            apart in memory.
        w2: [E, H, I] of w13's dtype.
        topk_weights: [T, topk], any float dtype.
        topk_ids: [T, topk] int32 or int64. An id outside [0, E) contributes nothing, whatever its weight.
        sf_w13: [E, blocks, ceil(H/128)] float32, bfloat16 or float8_e8m0fnu with the block rows of the gate,
            then those of up: blocks = 2 * ceil(I/128) for N1 = 2 * I, else ceil(N1/128). None unless w13 is
            float8_e4m3fn.
        sf_w2: [E, ceil(H/128), ceil(I/128)], as sf_w13.
        b13: [E, N1] bfloat16, float16 or float32.
        b2: [E, H] likewise.
        gate: a SwiGlu, or a function of [S, N1] that gives [S, I], row by row.
        is_transposed: w13 is [E, H, N1] and w2 [E, I, H]; not for FP8.
        post_norm: a function of [S, H] that gives [S, H], row by row.
        quantize_activations: "fp8" or "fp8_ue8m0": what FP8 weights meet is cast to FP8 with a scale factor
            for each 128 columns. None: it has x's dtype.

    Returns:
        out: [T, H] of x's dtype. Differentiable with respect to x, topk_weights, b13, b2 and float weights.
        FP8 weights are frozen, and where activations are quantized, too, backward raises.

    Numerics: the one op: as `moela.fused_experts`. The steps: float32 sums; gate_up, h and y are rounded to
        the dtype of float weights (of x, with FP8 ones), a bias is added to the rounded product and the sum
        rounded again, the weighted sum over slots is float32, slot after slot, and rounded once. Each of
        these roundings goes through all that follows, as ops/_fused_experts_bound.py adds them up. A row of
        out depends on its row of x, topk_weights and topk_ids only, if gate and post_norm work row by row.
        Weights and biases of experts that no token picked do not matter.

    Source: integrations/moe.py of transformers 5.24.0, whose layouts these are.
    """
    if is_transposed:
        w13, w2 = w13.mT, w2.mT  # [E, N1, H], [E, H, I]
    is_fp8 = w13.dtype == E4M3
    tensors = (x, w13, w2, sf_w13, sf_w2, b13, b2, topk_weights)
    is_trained = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    if not is_trained and is_one_op(w13, w2, gate, post_norm):
        return fused_experts(  # which checks everything
            _packed(x if is_fp8 else x.to(w13.dtype)),
            w13,
            w2,
            topk_weights.float(),
            topk_ids,
            sf_w13=sf_w13,
            sf_w2=sf_w2,
            b13=_packed(b13),
            b2=_packed(b2),
            limit=gate.limit,
            alpha=gate.alpha,
            quantize_activations=quantize_activations,
        ).to(x.dtype)
    if not torch.compiler.is_compiling():  # the ops check what is traced
        _check_args(x, w13, w2, topk_weights, topk_ids, quantize_activations)
        _check_parameters(w13, w2, sf_w13, sf_w2, b13, b2, gate)
    a = _packed(x if is_fp8 else x.to(w13.dtype))
    rows, offsets, inverse = moe_permute(a, _packed(topk_ids), w13.size(0))
    gate_up = _first_product(rows, w13, sf_w13, w2.size(2), offsets, quantize_activations)
    h = gate(_with_bias(gate_up, b13, offsets))  # [S, I]
    y = _with_bias(_product(h, w2, sf_w2, offsets, quantize_activations), b2, offsets)  # [S, H]
    y = y if post_norm is None else post_norm(y)
    return moe_unpermute(_packed(y), _packed(topk_weights.float()), inverse).to(x.dtype)


def is_one_op(w13: Tensor, w2: Tensor, gate: Gate, post_norm: Callable[[Tensor], Tensor] | None) -> bool:
    """Whether `fused_experts` computes this layer, gradients aside."""
    is_split = w13.dtype == E4M3 and w2.size(2) % BLOCK != 0
    is_k_major = all(w.stride(2) == 1 or w.size(2) <= 1 for w in (w13, w2))
    return isinstance(gate, SwiGlu) and post_norm is None and is_k_major and not is_split


def _first_product(
    a: Tensor, w13: Tensor, sf: Tensor | None, I: int, offsets: Tensor, quantize: str | None
) -> Tensor:
    """[S, H] -> [S, N1]. Two products where up's scale blocks do not begin where those of the gate end."""
    if sf is None or w13.size(1) != 2 * I or I % BLOCK == 0:
        return _product(a, w13, sf, offsets, quantize)
    halves = zip(w13.split(I, 1), sf.chunk(2, 1), strict=True)
    return torch.cat([_product(a, w, sf_w, offsets, quantize) for w, sf_w in halves], -1)


def _product(a: Tensor, w: Tensor, sf: Tensor | None, offsets: Tensor, quantize: str | None) -> Tensor:
    """[S, K] x [E, N, K] -> [S, N] of a's dtype."""
    a, sf_a, dtype = _packed(a), None, a.dtype
    if sf is None:
        return grouped_gemm(a, w, offsets)
    if quantize is not None:
        a, sf_a = per_token_group_quant_fp8(a, ue8m0=quantize == "fp8_ue8m0")
    return grouped_fp8_gemm(a, sf_a, w, sf, offsets, out_dtype=dtype)


def _with_bias(d: Tensor, bias: Tensor | None, offsets: Tensor) -> Tensor:
    """d [S, N] plus the bias [E, N] of each row's expert; a row without an expert has none."""
    if bias is None:
        return d
    rows = torch.arange(d.size(0), device=d.device, dtype=offsets.dtype)
    expert = torch.searchsorted(offsets[1:], rows, right=True)  # [S], E after the last group
    padded = torch.cat([bias, bias.new_zeros((1, bias.size(1)))])  # [E + 1, N]
    return (d + padded[expert]).to(d.dtype)


def _packed(t: Tensor | None) -> Tensor | None:
    """The same values with a contiguous last dimension, as the ops take them."""
    return t if t is None or t.size(-1) <= 1 or t.stride(-1) == 1 else t.contiguous()


def _check_args(x, w13, w2, topk_weights, topk_ids, quantize) -> None:
    """Weights, here and below, as if they were not transposed."""
    _check.expect_dim(NAME, "x", x, 2)
    _check.expect_dtype(NAME, "x", x.dtype, _check.FLOAT_DTYPES)
    _check.expect_dim(NAME, "w13", w13, 3)
    _check.expect_dtype(NAME, "w13", w13.dtype, (E4M3, *_check.FLOAT_DTYPES))
    _check.expect(w13.size(0) > 0, NAME, "w13", "at least one expert", "none")
    _check.expect(w13.size(2) == x.size(1), NAME, "w13", f"H={x.size(1)} (that of x)", f"H={w13.size(2)}")
    _check.expect_dim(NAME, "w2", w2, 3)
    _check.expect_dtype(NAME, "w2", w2.dtype, (w13.dtype,))
    _check.expect_dim(NAME, "topk_ids", topk_ids, 2)
    _check.expect_dtype(NAME, "topk_ids", topk_ids.dtype, (torch.int32, torch.int64))
    T, dtype = x.size(0), _check.dtype_name(topk_weights.dtype)
    _check.expect(topk_ids.size(0) == T, NAME, "topk_ids", f"T={T} (that of x)", f"T={topk_ids.size(0)}")
    _check.expect(topk_weights.is_floating_point(), NAME, "topk_weights", "a float dtype", dtype)
    _check.expect_shape(NAME, "topk_weights", topk_weights, topk_ids.shape)
    if quantize is not None:
        names = _check.one_of(["None", *QUANTIZATIONS])
        _check.expect(quantize in QUANTIZATIONS, NAME, "quantize_activations", names, quantize)
        wanted = f"None because w13 is {_check.dtype_name(w13.dtype)}"
        _check.expect(w13.dtype == E4M3, NAME, "quantize_activations", wanted, quantize)


def _check_parameters(w13, w2, sf_w13, sf_w2, b13, b2, gate) -> None:
    (E, N1, H), I = w13.shape, w2.size(2)
    if isinstance(gate, SwiGlu):
        _check.expect(N1 == 2 * I, NAME, "w13", f"{2 * I} rows (twice the I={I} of w2)", N1)
    _check.expect(w2.size(0) == E, NAME, "w2", f"E={E} (that of w13)", f"E={w2.size(0)}")
    _check.expect(w2.size(1) == H, NAME, "w2", f"H={H} (that of w13)", f"H={w2.size(1)}")
    blocks = 2 * _blocks(I) if N1 == 2 * I else _blocks(N1)
    _check_sf("sf_w13", sf_w13, w13, (E, blocks, _blocks(H)))
    _check_sf("sf_w2", sf_w2, w13, (E, _blocks(H), _blocks(I)))
    for name, bias, w in (("b13", b13, w13), ("b2", b2, w2)):
        if bias is not None:
            _check.expect_dtype(NAME, name, bias.dtype, _check.FLOAT_DTYPES)
            _check.expect_shape(NAME, name, bias, w.shape[:2])


def _check_sf(name: str, sf: Tensor | None, w13: Tensor, shape: tuple[int, ...]) -> None:
    if w13.dtype != E4M3:
        wanted = f"None because w13 is {_check.dtype_name(w13.dtype)}"
        _check.expect(sf is None, NAME, name, wanted, "a tensor")
        return
    _check.expect(sf is not None, NAME, name, "a tensor because w13 is float8_e4m3fn", "None")
    _check.expect_dtype(NAME, name, sf.dtype, SF_DTYPES)
    _check.expect_shape(NAME, name, sf, shape)


def _blocks(size: int) -> int:
    return (size + BLOCK - 1) // BLOCK
