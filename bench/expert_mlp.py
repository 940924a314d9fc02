"""One expert of a mixture of experts: with each contestant's matrix product, and what float64 says of it.

    y = down(h),  h = silu(g) * u,  g = gate(x),  u = up(x)

x, g, u, h and y are bfloat16, as in the published models; only the product differs between the contestants.

Bounds. A product of moela loses at most what its OpSpec says: accum * sum_k |a||w| before the rounding, with
accum = FLOAT32_SUM, and the rounding itself, rnd(d) = 2^-8 |d|. Every result is judged twice:

- step by step: g and u against float64 products of x, h against float64 silu(g) * u of the g and u that
  were computed, y against the float64 product of the h that was computed. These bounds are as tight as the
  op's own, so a wrong scale factor, column or row shows;
- as a whole: y against float64 throughout, no rounding anywhere. Errors go through the chain by

    e_g = accum (|x| |gate|^T),             then rounded; e_u alike
    e_s = 1.1 e_g                           silu(g), as |silu'| < 1.1, then evaluated and rounded
    e_h = |s| e_u + |u| e_s + e_s e_u       then rounded
    e_y = (e_h + accum (|h| + e_h)) |down|^T    then rounded

  where "rounded" adds rnd(|exact| + e). This is wide, because it does not exclude that the roundings of h
  conspire, but it stands on nothing that the contestant computed. It is how baselines are judged, which do
  not show their steps.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import moela
import numpy as np
import torch
from moela.bench.checkpoint import BLOCK, Expert, Weight
from moela.ops._spec import rounding
from moela.reference.fp8_gemm import dequantize_blocks
from moela.testing import FLOAT32_SUM, assert_within
from torch import Tensor
from torch.nn.functional import linear, silu

BF16, FP32 = torch.bfloat16, torch.float32
Linear = Callable[[Tensor], Tensor]

# A weight that is rounded to bfloat16, with its scale factor rounded too: (1 + 2^-8)^2 - 1 on each product.
ROUNDED_WEIGHTS_SUM = 2.0**-7 + 2.0**-16 + FLOAT32_SUM
_SILU_SLOPE = 1.1  # max |silu'| = 1.0998...
# silu in float32: exp, sum and quotient lose less than 2^-21; where exp(-g) overflows, at most 89 e^-88.
_SILU_RELATIVE, _SILU_ABSOLUTE = 2.0**-21, 2.0**-120
# Every code in float64, by its byte. Looking weights up is some ten times as fast as torch's conversion.
_CODES = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double().numpy()


class Steps(NamedTuple):
    """g, u and h [M, intermediate], y [M, hidden], as one contestant computed them."""

    g: Tensor
    u: Tensor
    h: Tensor
    y: Tensor


class Linears(NamedTuple):
    """The three matrices as one contestant multiplies with them."""

    gate: Linear
    up: Linear
    down: Linear


def mlp(x: Tensor, linears: Linears) -> Steps:
    """x [M, hidden] -> all steps."""
    g, u = linears.gate(x), linears.up(x)  # [M, intermediate]
    h = silu(g) * u
    return Steps(g, u, h, linears.down(h))


# --- contestants -----------------------------------------------------------------------------------------


def fp8(expert: Expert) -> Linears:
    """moela: straight from the FP8 weights, wherever they lie."""
    return Linears(*(_fp8_linear(weight) for weight in expert))


def _fp8_linear(weight: Weight) -> Linear:
    return lambda x: moela.fp8_gemm(x, None, weight.q, weight.sf)


def dequantize_each_call(expert: Expert) -> Linears:
    """torch: the weights stay FP8 and are dequantized to bfloat16 in every call."""
    return Linears(*(_dequantizing_linear(weight) for weight in expert))


def _dequantizing_linear(weight: Weight) -> Linear:
    N, K = weight.q.shape
    if K % BLOCK:
        return lambda x: linear(x, dequantize_blocks(weight.q, weight.sf.to(BF16), BF16))

    def call(x: Tensor) -> Tensor:
        # The fastest found in plain torch: the scale factors are not expanded along K.
        sf = weight.sf.to(BF16).repeat_interleave(BLOCK, 0)[:N]  # [N, K/128]
        w = weight.q.to(BF16).view(N, -1, BLOCK) * sf.unsqueeze(-1)  # [N, K/128, 128]
        return linear(x, w.view(N, K))

    return call


def bf16_ahead(expert: Expert) -> Linears:
    """torch: dequantized to bfloat16 once, twice the memory of FP8."""
    return Linears(*(_dense_linear(moela.per_block_dequant_fp8(*weight, BF16)) for weight in expert))


def fp32_ahead(expert: Expert) -> Linears:
    """torch: dequantized to float32 once, four times the memory of FP8."""
    return Linears(*(_dense_linear(moela.per_block_dequant_fp8(*weight, FP32)) for weight in expert))


def _dense_linear(w: Tensor) -> Linear:
    return lambda x: linear(x.to(w.dtype), w).to(BF16)


# --- float64 ---------------------------------------------------------------------------------------------


def product(values: Tensor, spreads: Tensor, weight: Weight) -> tuple[Tensor, Tensor]:
    """float64 [M, K], [M', K] -> values @ w.T [M, N], spreads @ |w|.T [M', N]; w is exact."""
    exact, spread = [], []
    for q, sf in zip(weight.q.split(BLOCK), weight.sf.double(), strict=True):
        w = dequantized_exactly(q, sf)
        exact.append(values @ w.T)
        spread.append(spreads @ w.abs_().T)
    return torch.cat(exact, 1), torch.cat(spread, 1)


def dequantized_exactly(q: Tensor, sf: Tensor) -> Tensor:
    """One row of blocks: q [<= 128, K], sf [ceil(K/128)] float64 -> [<= 128, K] float64."""
    w = torch.from_numpy(np.take(_CODES, q.view(torch.uint8).numpy()))  # [<= 128, K]
    return w.mul_(sf.repeat_interleave(BLOCK)[: q.size(1)])


def rounded(exact: Tensor, error: Tensor) -> Tensor:
    """The error after a value within `error` of `exact` was rounded to bfloat16."""
    return error + rounding(exact.abs() + error, BF16)


def gated(g: Tensor, e_g: Tensor | float, u: Tensor, e_u: Tensor | float) -> tuple[Tensor, Tensor]:
    """silu(g) * u in float64, and how far the computed one may be if g and u are off by up to e_g and e_u."""
    s = silu(g)
    e_s = _SILU_SLOPE * e_g
    e_s = rounded(s, e_s + _SILU_RELATIVE * (s.abs() + e_s) + _SILU_ABSOLUTE)
    h = s * u
    return h, rounded(h, s.abs() * e_u + u.abs() * e_s + e_s * e_u)


def verify(x: Tensor, steps: Steps, expert: Expert, baselines: Mapping[str, Tensor] | None = None) -> Tensor:
    """Hold what moela computed, and the y of baselines, against float64.

    Args:
        x: [M, hidden].
        steps: of moela.
        expert: the weights.
        baselines: y by name.

    Returns:
        y in float64, [M, hidden].

    Raises:
        AssertionError: an element is out of bounds; says which.
    """
    a = x.double()
    g, g_spread = product(a, a.abs(), expert.gate)
    u, u_spread = product(a, a.abs(), expert.up)
    assert_within(steps.g, g, rounded(g, FLOAT32_SUM * g_spread), "gate_proj")
    assert_within(steps.u, u, rounded(u, FLOAT32_SUM * u_spread), "up_proj")
    assert_within(steps.h, *gated(steps.g.double(), 0.0, steps.u.double(), 0.0), "silu(gate) * up")

    def error_of_h(accum: float) -> tuple[Tensor, Tensor]:
        return gated(g, rounded(g, accum * g_spread), u, rounded(u, accum * u_spread))

    own = steps.h.double()
    h, e_h = error_of_h(FLOAT32_SUM)
    spreads = [FLOAT32_SUM * own.abs(), _spread_of_y(h, e_h, FLOAT32_SUM)]
    if baselines:
        _, e_h = error_of_h(ROUNDED_WEIGHTS_SUM)
        spreads.append(_spread_of_y(h, e_h, ROUNDED_WEIGHTS_SUM))
    values, errors = product(torch.cat([own, h]), torch.cat(spreads), expert.down)
    (y_of_own_h, y), (e_step, e_whole, *e_lossy) = values.chunk(2), errors.chunk(len(spreads))
    assert_within(steps.y, y_of_own_h, rounded(y_of_own_h, e_step), "down_proj")
    assert_within(steps.y, y, rounded(y, e_whole), "down(silu(gate) * up)")
    for name, got in (baselines or {}).items():
        assert_within(got, y, rounded(y, e_lossy[0]), name)
    return y


def _spread_of_y(h: Tensor, e_h: Tensor, accum: float) -> Tensor:
    """What, times |down|.T, bounds the error of y before its rounding."""
    return e_h + accum * (h.abs() + e_h)


def cat_steps(steps: Sequence[Steps]) -> Steps:
    """Rows below each other. They do not depend on one another, so they are judged together."""
    return Steps(*(torch.cat(parts) for parts in zip(*steps, strict=True)))


def cost(x_rows: int, expert: Expert) -> tuple[int, int]:
    """(flops, bytes) of the algorithm: FP8 weights and scale factors read once, x read, y written."""
    flops = sum(2 * x_rows * weight.q.numel() for weight in expert)
    weights = sum(t.nbytes for weight in expert for t in weight)
    return flops, weights + 2 * x_rows * (expert.gate.q.size(1) + expert.down.q.size(0))
