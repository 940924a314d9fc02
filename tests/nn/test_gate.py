"""SwiGlu, and which one an experts module of another library has."""

import pytest
import torch
from moela import testing
from moela.nn import SwiGlu, gate_of
from moela.ops._spec import rounding
from moela.ops.silu_and_mul import float32_error
from torch import Tensor, nn

KINDS = [SwiGlu(), SwiGlu(7.0), SwiGlu(7.0, 1.702)]


class Stock(nn.Module):
    """The attributes that transformers' experts modules have."""

    def __init__(self, **attributes: object) -> None:
        super().__init__()
        for name, value in ({"has_gate": True, "act_fn": nn.SiLU()} | attributes).items():
            setattr(self, name, value)


class Clamped(Stock):
    def _apply_gate(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, -1)
        return self.act_fn(gate.clamp(max=self.limit)) * up.clamp(-self.limit, self.limit)


class Oai(Stock):
    def _apply_gate(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, -1)
        gate, up = gate.clamp(max=self.swiglu_limit), up.clamp(-self.swiglu_limit, self.swiglu_limit)
        return (up + 1) * gate * torch.sigmoid(gate * self.swiglu_alpha)


class Interleaved(Oai):
    def _apply_gate(self, gate_up: Tensor) -> Tensor:
        return super()._apply_gate(torch.cat([gate_up[..., ::2], gate_up[..., 1::2]], -1))


class ClampedAfter(Stock):
    def _apply_gate(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, -1)
        return self.act_fn(gate).clamp(max=self.limit) * up.clamp(-self.limit, self.limit)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gate", KINDS)
def test_has_the_values_of_silu_and_mul_with_and_without_gradients(gate, dtype):
    x = (torch.randn(9, 34, generator=torch.Generator().manual_seed(0)) * 8).to(dtype)
    y, error = float32_error(x, gate.limit, gate.alpha)
    error = error + rounding(y.abs() + error, dtype)
    testing.assert_within(gate(x), y, error)
    testing.assert_within(gate(x.requires_grad_()).detach(), y, error)


@pytest.mark.parametrize("gate", KINDS)
def test_has_the_derivative_of_its_formula(gate):
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(0)) * 4
    mine, wide = x.clone().requires_grad_(), x.double().requires_grad_()
    gate(mine).sum().backward()
    g, up = wide.chunk(2, -1)
    if gate.limit is not None:
        g, up = g.clamp(max=gate.limit), up.clamp(-gate.limit, gate.limit)
    y = nn.functional.silu(g) * up if gate.alpha is None else (up + 1) * g * torch.sigmoid(gate.alpha * g)
    y.sum().backward()
    # Some ten roundings of terms that are no larger than |gate| |up|, alpha and slope included.
    error = 16 * 2.0**-24 * (1 + wide.detach().abs().amax() ** 2)
    testing.assert_within(mine.grad, wide.grad, torch.full_like(wide, error))


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (Stock(), SwiGlu()),
        (Stock(act_fn=nn.functional.silu), SwiGlu()),
        (Stock(limit=3.0), SwiGlu()),  # an attribute alone means nothing
        (Clamped(limit=3.0), SwiGlu(3.0)),
        (Clamped(limit=1e4), SwiGlu(1e4)),
        (Clamped(limit=float("inf")), SwiGlu()),
        (Oai(swiglu_limit=7.0, swiglu_alpha=1.702), SwiGlu(7.0, 1.702)),
    ],
    ids=lambda v: v if isinstance(v, SwiGlu) else type(v).__name__,
)
def test_a_gate_is_recognised_by_what_it_computes(module, expected):
    assert gate_of(module) == expected


@pytest.mark.parametrize(
    "module",
    [
        Stock(act_fn=nn.GELU()),
        Stock(act_fn=nn.functional.relu),
        ClampedAfter(limit=3.0),
        Interleaved(swiglu_limit=7.0, swiglu_alpha=1.702),
    ],
    ids=lambda m: type(m).__name__,
)
def test_another_gate_is_taken_as_it_is(module):
    gate = gate_of(module)
    assert not isinstance(gate, SwiGlu)
    x = torch.randn(3, 8)
    theirs = getattr(module, "_apply_gate", lambda x: module.act_fn(x[:, :4]) * x[:, 4:])
    assert testing.same_bits(gate(x), theirs(x))


def test_an_ungated_module_has_its_activation():
    module = Stock(has_gate=False, act_fn=nn.ReLU())
    assert gate_of(module) is module.act_fn


def test_limits_are_checked():
    with pytest.raises(ValueError, match=r"moela.nn.SwiGlu: limit: expected a positive number, got 0"):
        SwiGlu(0.0)
    with pytest.raises(
        ValueError, match=r"moela.nn.SwiGlu: alpha: expected None because limit is None, got 1.702"
    ):
        SwiGlu(alpha=1.702)
