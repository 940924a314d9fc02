"""The gated activation in Triton, shared by the ops that fuse it."""

import math

import triton
import triton.language as tl
from moela.kernels import _fp8


def numbers(limit: float | None, alpha: float | None) -> tuple[float, float, float]:
    """(limit, alpha, shift) of gate * sigmoid(alpha * gate) * (up + shift), which is every kind."""
    return (
        math.inf if limit is None else float(limit),
        1.0 if alpha is None else float(alpha),
        0.0 if alpha is None else 1.0,
    )


@triton.jit
def swiglu(gate_ptr, K, mask, limit, alpha, shift, INTERPRETED: tl.constexpr):
    """Pointers to elements of gate, each K before its element of up -> float32; 0 where masked.

    tl.minimum would drop a NaN. exp may overflow; then the quotient is the 0 that it should be.
    """
    gate = _fp8.to_float32(tl.load(gate_ptr, mask=mask, other=0.0), INTERPRETED)
    up = _fp8.to_float32(tl.load(gate_ptr + K, mask=mask, other=0.0), INTERPRETED)
    gate = tl.where(gate > limit, limit, gate)
    up = tl.where(up > limit, limit, tl.where(up < -limit, -limit, up))
    return tl.div_rn(gate, 1.0 + tl.exp(-(alpha * gate))) * (up + shift)
