"""How far from exact an implementation of ``fused_experts`` may be: the derivation of its bound.

Exact is float64 throughout, from the dequantized weights. What an implementation adds, per element, each
carried through what follows it (u: unit roundoff of the type that intermediates are kept in; c: what a
float32 accumulator loses, see moela.testing):

    gate_up  e_g = c (|a| |w13|^T + |b13|), then rounded: + u (|g| + e_g)
    h        |s| e_up + |v| e_s + e_s e_up with s = gate * sigmoid(alpha * gate), v = up or up + 1 and
             e_s = 1.1 e_gate, as |ds/dgate| < 1.1 whatever alpha; then what float32 loses in the activation
             (ops/silu_and_mul.py); then rounded, or cast to FP8
    y        e_h |w2|^T + c ((|h| + e_h) |w2|^T + |b2|), then rounded
    out      sum |weight| (e_y + (topk + 1) 2^-24 (|y| + e_y)), then rounded to the type of x

Clamping moves no two values apart. The cast to FP8 of x has one result on every backend. That of h has not:
a code next to the middle between two may come out as either, and so may a scale factor; what the cast makes
of the ends of the interval around h bounds what it makes of anything inside.
"""

from typing import Any

import torch
from torch import Tensor

from moela.ops._spec import rounding
from moela.reference.fused_experts import as_multiplied, linear, parameters, tokens_of
from moela.reference.per_token_group_quant_fp8 import cast_e4m3, scale_factor
from moela.reference.silu_and_mul import gate_and_up

GROUP = 128  # columns that share a scale factor
SILU_SLOPE = 1.1  # max |d (z sigmoid(z)) / dz| = 1.0998...
UNIT = 2.0**-24  # unit roundoff of float32


def bound(
    inputs: dict[str, Any],
    accum: float,
    gate_up_dtype: torch.dtype | None = None,
    h_dtype: torch.dtype | None = None,
) -> list[tuple[Tensor, Tensor]]:
    """(out, allowed error), float64. To what gate_up and y, and h, are rounded; None: to x's dtype."""
    x, quantize = inputs["x"], inputs.get("quantize_activations")
    dtype = gate_up_dtype or x.dtype
    a = as_multiplied(x, quantize)  # [T, H]
    out, error = torch.zeros_like(a), torch.zeros_like(a)
    sums = (inputs["topk_ids"].size(1) + 1) * UNIT
    for expert in range(inputs["w13"].size(0)):
        token, weight = tokens_of(expert, inputs["topk_weights"], inputs["topk_ids"])
        if token.numel() == 0:
            continue
        w13, b13 = parameters(expert, inputs["w13"], inputs.get("sf_w13"), inputs.get("b13"))
        w2, b2 = parameters(expert, inputs["w2"], inputs.get("sf_w2"), inputs.get("b2"))
        gate_up = product(a[token], torch.zeros_like(a[token]), w13, b13, accum, dtype)
        h = activation(*gate_up, inputs.get("limit"), inputs.get("alpha"))
        h = rounded(*h, h_dtype or x.dtype) if quantize is None else cast(*h, quantize == "fp8_ue8m0")
        y, e_y = product(*h, w2, b2, accum, dtype)
        out[token] += weight * y
        error[token] += weight.abs() * (e_y + sums * (y.abs() + e_y))
    return [(out, error + rounding(out.abs() + error, x.dtype))]


def rounded(value: Tensor, error: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A value within `error` of `value`, after it was rounded to `dtype`."""
    return value, error + rounding(value.abs() + error, dtype)


def product(
    a: Tensor, e_a: Tensor, w: Tensor, bias: Tensor | None, accum: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """a @ w.T + bias, of a within e_a."""
    magnitude = e_a + accum * (a.abs() + e_a)  # [M, K], of the products: added up by one more product
    error = linear(magnitude, w.abs(), None if bias is None else accum * bias.abs())
    return rounded(linear(a, w, bias), error, dtype)


def activation(g: Tensor, e_g: Tensor, limit: float | None, alpha: float | None) -> tuple[Tensor, Tensor]:
    """[M, 2 * I] within e_g -> [M, I]: the gated activation, evaluated in float32 and not rounded further."""
    gate, up = gate_and_up(g, limit)  # rounds g to float32
    e_gate, e_up = (e_g + UNIT * g.abs()).chunk(2, -1)
    z, v = (gate, up) if alpha is None else (alpha * gate, up + 1)
    s, e_s = gate * torch.sigmoid(z), SILU_SLOPE * e_gate
    h, e_h = s * v, s.abs() * e_up + v.abs() * e_s + e_s * e_up
    # |z| sigmoid(-z) has the slope of silu too.
    units = 12 + 4 * (z.abs() * torch.sigmoid(-z) + SILU_SLOPE * (alpha or 1.0) * e_gate)
    tiny = 2.0**-126 * (gate.abs() + e_gate + 1) * (v.abs() + e_up + 1)
    return h, e_h + UNIT * units * (h.abs() + e_h) + tiny


def cast(h: Tensor, e_h: Tensor, ue8m0: bool) -> tuple[Tensor, Tensor]:
    """h within e_h -> the middle of what its cast to FP8 may stand for, and half that interval's length.

    A quotient, a code and a scale factor are never less for more. A scale factor that is a power of two is
    one of two at most, each with its own codes; else it is anything between two that are close.
    """
    K = h.size(-1)
    pad = -K % GROUP

    def grouped(t: Tensor) -> Tensor:
        return torch.nn.functional.pad(t, (0, pad)).unflatten(-1, (-1, GROUP))  # [M, groups, 128]

    low, high = grouped((h - e_h).float()), grouped((h + e_h).float())
    smallest = grouped((h.abs() - e_h).clamp(min=0).float()).amax(-1, keepdim=True)
    largest = grouped((h.abs() + e_h).float()).amax(-1, keepdim=True)
    sf = scale_factor(smallest, ue8m0), scale_factor(largest, ue8m0)  # [M, groups, 1]
    ends = []
    for mine in sf:
        for end in (low, high):
            code = cast_e4m3(end / mine).double()
            ends += [code * s.double() for s in ((mine,) if ue8m0 else sf)]
    ends = torch.stack(ends).flatten(-2)[..., :K]
    low, high = ends.amin(0), ends.amax(0)
    return (low + high) / 2, (high - low) / 2
