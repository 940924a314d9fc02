"""What stands between the two products of an expert."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moela.nn._twin import tried_out
from moela.ops.silu_and_mul import check_limits, float32_error, silu_and_mul

ROWS, COLUMNS = 64, 64  # of the probe that tells one gate from another


@dataclass(frozen=True)
class SwiGlu:
    """``y = silu(gate) * up`` of the two halves of x, gate first; with limit and alpha its clamped kinds.

    The formulas are those of `moela.silu_and_mul`. Experts with this gate can run as one op; any other
    callable that maps [S, N1] to [S, I] runs between two products.

    Args:
        limit: positive; None: nothing is clamped.
        alpha: positive, needs a limit; None: plain silu.
    """

    limit: float | None = None
    alpha: float | None = None

    def __post_init__(self) -> None:
        check_limits("moela.nn.SwiGlu", self.limit, self.alpha)

    def __call__(self, x: Tensor) -> Tensor:
        """[S, 2*I] -> [S, I]."""
        return silu_and_mul(x, limit=self.limit, alpha=self.alpha)


Gate = SwiGlu | Callable[[Tensor], Tensor]


def gate_of(experts: nn.Module) -> Gate:
    """The gate of a transformers experts module: a SwiGlu where it computes one, else its own function."""
    if not getattr(experts, "has_gate", hasattr(experts, "gate_up_proj")):
        return experts.act_fn
    theirs = getattr(experts, "_apply_gate", None) or _default_gate(experts)
    return swiglu_of(experts, theirs) or theirs


def swiglu_of(module: nn.Module, theirs: Callable[[Tensor], Tensor]) -> SwiGlu | None:
    """The SwiGlu that `theirs` computes, with the limits that the module has, or None.

    Names of attributes only propose: what is believed has the values of `theirs` on a probe, in float32,
    within what float32 may lose.
    """
    limits, alphas = (
        [v for v in (_number(module, name) for name in names) if v is not None]
        for names in (("limit", "swiglu_limit"), ("alpha", "swiglu_alpha"))
    )
    candidates = [SwiGlu(), *map(SwiGlu, limits)]
    candidates += [SwiGlu(limit, alpha) for limit in limits for alpha in alphas]
    return next((c for c in candidates if _agree(c, theirs, max(limits, default=1.0))), None)


def _default_gate(experts: nn.Module) -> Callable[[Tensor], Tensor]:
    """That of an experts module without `_apply_gate`."""

    def apply(gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, -1)
        return experts.act_fn(gate) * up

    return apply


def _number(module: nn.Module, name: str) -> float | None:
    """A positive finite number, or None."""
    value = getattr(module, name, None)
    is_number = isinstance(value, (int, float)) and 0 < value < float("inf")
    return float(value) if is_number else None


def _agree(mine: SwiGlu, theirs: Callable[[Tensor], Tensor], limit: float) -> bool:
    """On rows of very different size, with values on both sides of every limit."""
    g = torch.Generator().manual_seed(0)
    sizes = limit * torch.exp2(torch.linspace(-8, 4, ROWS))[:, None]
    probe = torch.randn(ROWS, 2 * COLUMNS, generator=g) * sizes
    result = tried_out(lambda: theirs(probe))
    exact, error = float32_error(probe, mine.limit, mine.alpha)
    if not isinstance(result, Tensor) or result.shape != exact.shape:
        return False
    # Theirs is float32 too, in the same number of steps; their clamp of a silu may add one.
    return bool(((result.double() - exact).abs() <= 2 * error).all())
