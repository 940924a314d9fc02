"""Definition of ``silu_and_mul``, and the gated activation that the quantized op shares with it."""

import torch
from torch import Tensor


def gate_and_up(x: Tensor, limit: float | None) -> tuple[Tensor, Tensor]:
    """The halves of x, clamped, in float64. A NaN stays; limit counts as the float32 next to it."""
    gate, up = x.float().chunk(2, -1)  # [..., K] each
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate.double(), up.double()


def swiglu(x: Tensor, limit: float | None, alpha: float | None) -> Tensor:
    """[..., 2 * K] -> [..., K] float64: gate * sigmoid(gate) * up; with alpha gpt-oss's kind."""
    gate, up = gate_and_up(x, limit)
    if alpha is None:
        return gate * torch.sigmoid(gate) * up
    return gate * torch.sigmoid(alpha * gate) * (up + 1)


def silu_and_mul(x: Tensor, limit: float | None = None, alpha: float | None = None) -> Tensor:
    """The specification of ``moela.silu_and_mul``."""
    return swiglu(x, limit, alpha).to(x.dtype)
