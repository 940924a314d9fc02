"""silu_and_mul: its kinds, its limits, and that its bound finds what is wrong."""

from typing import Any

import moela
import pytest
import torch
from moela import testing
from moela.ops._spec import rounding
from torch import Tensor

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
NAN, INF = float("nan"), float("inf")
KINDS = [{}, {"limit": 7.0}, {"limit": 7.0, "alpha": 1.702}, {"limit": 0.5, "alpha": 0.1}]


def activate(run: Any, x: Tensor, limit: float | None = None, alpha: float | None = None) -> Tensor:
    (y,) = run({"x": x.to(run.device), "limit": limit, "alpha": alpha})
    return y.cpu()


def assert_bound(run: Any, x: Tensor, got: Tensor, **kind: float) -> None:
    [(exact, error)] = run.spec.bound({"x": x, "limit": None, "alpha": None} | kind, 0.0)
    testing.assert_within(got, exact, error)


def test_is_the_formula_of_the_docstring(run):
    """In float64 and written again, for one pair of numbers."""
    g, u = torch.tensor(1.25, dtype=torch.float64), torch.tensor(-3.0, dtype=torch.float64)
    x = torch.tensor([[1.25, -3.0]])
    for kind, expected in [
        ({}, g / (1 + (-g).exp()) * u),
        ({"limit": 1.0}, 1 / (1 + torch.tensor(-1.0).double().exp()) * -1),
        ({"limit": 2.0}, g / (1 + (-g).exp()) * -2),
        ({"limit": 2.0, "alpha": 1.5}, g / (1 + (-1.5 * g).exp()) * (-2 + 1)),
    ]:
        torch.testing.assert_close(activate(run, x, **kind).double().squeeze(), expected, rtol=1e-6, atol=0)


def test_is_the_activation_of_gpt_oss(run):
    """Its model.py, in which gate and up alternate; rewritten here in float64."""
    pairs = torch.randn(5, 64, generator=torch.Generator().manual_seed(1)) * 6
    gate, up = pairs[:, ::2].double().clamp(max=7.0), pairs[:, 1::2].double().clamp(-7.0, 7.0)
    expected = gate * torch.sigmoid(1.702 * gate) * (up + 1)
    got = activate(run, torch.cat([pairs[:, ::2], pairs[:, 1::2]], -1), 7.0, 1.702)
    torch.testing.assert_close(got.double(), expected, rtol=2.0**-18, atol=1e-30)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_keeps_its_bound_for_gates_of_every_size(run, kind):
    """Both signs: where the exponential overflows, vanishes, and between."""
    gate = torch.cat([torch.linspace(-110, 110, 4001), torch.exp2(torch.linspace(-149, 60, 2000))])
    gate = torch.cat([gate, -gate])
    for up in (1.0, -2.7, 2.0**-100, 3.0**40):
        x = torch.cat([gate, torch.full_like(gate, up)])[None]
        assert_bound(run, x, activate(run, x, **kind), **kind)


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
def test_nan_stays_and_infinity_is_clamped(run, dtype):
    x = torch.tensor([[NAN, 1.0, INF, 1.0, 1.0, -INF, 1.0, NAN, 2.0, INF, -INF, 3.0]], dtype=dtype)
    y = activate(run, x)
    assert y.isnan().tolist() == [[True, True, False, False, False, True]]
    assert y[0, 2] == INF
    for alpha in (None, 1.702):
        clamped = activate(run, x, 7.0, alpha)
        assert clamped.isnan().tolist() == [[True, True, False, False, False, True]]
        finite = torch.where(x.isinf(), x.sign() * 7, x)
        assert torch.equal(clamped[0, 2:5], activate(run, finite, 7.0, alpha)[0, 2:5])


def test_takes_any_leading_dimensions_and_strides(run):
    x = torch.randn(24, 74, generator=torch.Generator().manual_seed(2)).to(BF16)
    y = activate(run, x)
    for shape in ((24, 74), (2, 12, 74), (2, 3, 4, 74)):
        assert testing.same_bits(activate(run, x.view(shape)), y.view(*shape[:-1], 37))
    permuted = activate(run, x.view(4, 6, 74).transpose(0, 1))
    assert testing.same_bits(permuted, y.view(4, 6, 37).transpose(0, 1))
    assert testing.same_bits(activate(run, x[:1].expand(5, 74)), y[:1].expand(5, 37))
    assert testing.same_bits(activate(run, x[0]), y[0])
    assert activate(run, x[:, :0]).shape == (24, 0)


def swapped(x: Tensor) -> Tensor:
    return torch.cat(x.chunk(2, -1)[::-1], -1)


@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
def test_the_bound_finds_what_is_wrong(run, dtype):
    inputs = run.inputs(M=5, K=200, limit=7.0, alpha=1.702, x_dtype=dtype)
    x, y = inputs["x"], run(inputs)[0]
    one_ulp = 2.0**-7 if dtype == BF16 else 2.0**-16
    planted = {
        "gate and up swapped": run(inputs | {"x": swapped(x)})[0],
        "alpha forgotten": run(inputs | {"alpha": None})[0],
        "no limit": run(inputs | {"limit": 1e30})[0],
        "one element off": torch.where(torch.arange(200, device=y.device) == 77, y * (1 + 2 * one_ulp), y),
        "up without its 1": y - y / (x[:, 200:].float().clamp(-7, 7) + 1).to(dtype),
    }
    assert_bound(run, x, y, limit=7.0, alpha=1.702)
    for wrong in planted.values():
        with pytest.raises(AssertionError, match="out of bounds"):
            assert_bound(run, x, wrong, limit=7.0, alpha=1.702)


# --- autograd --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("limit", "alpha"), [(None, None), (0.5, None), (7.0, 1.702)])
def test_the_derivative_is_that_of_the_formula(run, dtype, limit, alpha):
    """Against torch's autograd in float64. Each of the two halves sums at most five float32 products."""
    inputs = run.inputs(M=6, K=33, x_dtype=dtype, limit=limit, alpha=alpha)
    x = inputs["x"].requires_grad_()
    (y,) = run(inputs)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(6)).to(y)
    y.backward(grad)
    exact = x.detach().double().requires_grad_()
    gate, up = exact.chunk(2, -1)
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    (gate * torch.sigmoid((alpha or 1) * gate) * (up + 1 if alpha else up)).backward(grad.double())
    # 1 + z (1 - s) cancels where z is negative: its terms count by themselves.
    gate, up = gate.detach(), up.detach()
    z, factor = ((alpha or 1) * gate, up + 1 if alpha else up)
    s = torch.sigmoid(z)
    sizes = torch.cat([factor.abs() * s * (1 + z.abs() * (1 - s)), (gate * s).abs()], -1)
    terms = grad.double().abs().repeat(1, 2) * sizes
    bound = 2.0**-20 * (1 + z.abs().repeat(1, 2)) * terms + rounding(exact.grad, dtype)
    assert ((x.grad.double() - exact.grad).abs() <= bound).all()


def test_what_a_limit_cuts_off_gets_no_gradient(run):
    x = torch.tensor([[8.0, 7.0, 1.0, -9.0]], device=run.device, requires_grad=True)  # gate 8, 7; up 1, -9
    (y,) = run({"x": x, "limit": 7.0, "alpha": None})
    y.sum().backward()
    assert (x.grad == 0).tolist() == [[True, False, False, True]]


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_the_derivative_compiles(backend):
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    compiled = torch.compile(lambda t: moela.silu_and_mul(t).sum(), fullgraph=True, backend=backend)
    (expected,) = torch.autograd.grad(moela.silu_and_mul(x).sum(), x)
    (got,) = torch.autograd.grad(compiled(x), x)
    torch.testing.assert_close(got, expected)
