"""merge_states: the formula, states without keys, and what is no lse."""

import math
from typing import Any

import moela
import pytest
import torch
from moela import testing
from torch import Tensor

INF, NAN = float("inf"), float("nan")


def merge(run: Any, out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    args = {"out_a": out_a, "lse_a": lse_a, "out_b": out_b, "lse_b": lse_b}
    return tuple(t.cpu() for t in run({k: v.to(run.device) for k, v in args.items()}))


def test_is_the_formula_of_the_docstring(run):
    out, lse = merge(
        run,
        torch.tensor([[1.0, 2.0]]),
        torch.tensor([math.log(3)]),
        torch.tensor([[5.0, -2.0]]),
        torch.tensor([0.0]),
    )
    torch.testing.assert_close(out, torch.tensor([[2.0, 1.0]]), rtol=2**-21, atol=0)
    torch.testing.assert_close(lse, torch.tensor([math.log(4)]), rtol=2**-21, atol=0)


def test_is_the_attention_over_all_keys(run):
    """A softmax over 50 keys from that over 20 and over 30 of them."""
    g = torch.Generator().manual_seed(3)
    scores = 3 * torch.randn(7, 50, generator=g, dtype=torch.float64)
    v = torch.randn(50, 16, generator=g, dtype=torch.float64)
    parts = [slice(0, 20), slice(20, 50)]
    outs = [(scores[:, keys].softmax(-1) @ v[keys]).float() for keys in parts]
    lses = [scores[:, keys].logsumexp(-1).float() for keys in parts]
    out, lse = merge(run, outs[0], lses[0], outs[1], lses[1])
    torch.testing.assert_close(out.double(), scores.softmax(-1) @ v, rtol=0, atol=1e-6)
    torch.testing.assert_close(lse.double(), scores.logsumexp(-1), rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_a_state_without_keys_leaves_the_other_as_it_is(run, dtype):
    """Bit for bit, whatever the state without keys holds."""
    inputs = run.inputs(T=3, H=4, D=33, x_dtype=dtype, hostile=False)
    inputs["out_a"][0, 0, 0] = -0.0
    a, lse_a = inputs["out_a"].cpu(), inputs["lse_a"].cpu()
    for rest in (NAN, INF, 1.0):
        nothing, none = torch.full_like(a, rest), torch.full_like(lse_a, -INF)
        for out, lse in (merge(run, a, lse_a, nothing, none), merge(run, nothing, none, a, lse_a)):
            assert testing.same_bits(out, a)
            assert testing.same_bits(lse, lse_a)


def test_two_states_without_keys_are_one(run):
    none, nan = torch.full((2, 3), -INF), torch.full((2, 3, 5), NAN)
    out, lse = merge(run, nan, none, nan, none)
    assert testing.same_bits(out, torch.zeros(2, 3, 5))
    assert testing.same_bits(lse, none)


@pytest.mark.parametrize("wrong", [NAN, -NAN, INF])
@pytest.mark.parametrize("other", [0.0, -INF, INF, NAN])
def test_an_lse_that_is_none_makes_its_row_nan(run, wrong, other):
    """+Inf too: elsewhere it marks a row without keys, and taken for a number it would hide the other."""
    ones = torch.ones(2, 4)
    for pair in ((wrong, other), (other, wrong)):
        lse_a, lse_b = (torch.tensor([lse, 0.0]) for lse in pair)
        out, lse = merge(run, ones, lse_a, ones, lse_b)
        assert out[0].isnan().all()
        assert lse[0].isnan()
        assert out[1].tolist() == [1.0] * 4


def test_nan_and_infinity_of_a_state_with_keys_stay(run):
    a, b = torch.tensor([[NAN, INF, 1.0]]), torch.tensor([[1.0, 1.0, -INF]])
    out, lse = merge(run, a, torch.zeros(1), b, torch.zeros(1))
    assert out[0, 0].isnan()
    assert out[0, 1:].tolist() == [INF, -INF]
    assert lse.isfinite().all()


def test_a_and_b_may_change_places(run):
    x = run.inputs(T=5, H=3, D=40, x_dtype=torch.float32)
    swapped = {"out_a": x["out_b"], "lse_a": x["lse_b"], "out_b": x["out_a"], "lse_b": x["lse_a"]}
    for one, other in zip(run(x), run(swapped), strict=True):
        assert testing.same_bits(one, other)


def test_far_apart_lses_neither_overflow_nor_vanish(run):
    ones = torch.ones(6, 1)
    lse_a = torch.tensor([3e38, -3e38, 1e4, -1e4, 88.0, -104.0])
    lse_b = torch.tensor([-3e38, -3e38, 1e4, 0.0, 0.0, 0.0])
    out, lse = merge(run, ones, lse_a, 2 * ones, lse_b)
    torch.testing.assert_close(
        out.squeeze(), torch.tensor([1.0, 1.5, 1.5, 2.0, 1.0, 2.0]), rtol=2**-22, atol=0
    )
    torch.testing.assert_close(
        lse, torch.tensor([3e38, -3e38, 1e4 + math.log(2), 0.0, 88.0, 0.0]), rtol=2**-22, atol=0
    )


def test_lses_may_have_any_strides(run):
    x = run.inputs(T=4, H=6, D=8)
    strided = x | {n: x[n].mT.contiguous().mT for n in ("lse_a", "lse_b")}
    for one, other in zip(run(strided), run(x), strict=True):
        assert testing.same_bits(one, other)


def test_the_derivative_is_that_of_the_formula(run):
    """In float64; the gradients of a state without keys are zero, whatever it holds."""
    x = run.inputs(T=6, H=3, D=5, x_dtype=torch.float32)
    dout, dlse = (torch.randn(6, 3, *n, device=run.device) for n in ((5,), ()))
    leaves = {name: t.detach().clone().requires_grad_() for name, t in x.items()}
    with moela.use_backend(run.backend):
        out, lse = moela.merge_states(**leaves)
    has_keys = lse != -INF
    got = torch.autograd.grad([out, lse], [*leaves.values()], [dout, torch.where(has_keys, dlse, NAN)])
    wide = {name: torch.where(t.isfinite(), t, 0.0).double().requires_grad_() for name, t in x.items()}
    is_empty = [x[f"lse_{s}"] == -INF for s in "ab"]
    weights = [torch.where(e, 0.0, wide[f"lse_{s}"].exp()) for s, e in zip("ab", is_empty, strict=True)]
    total = torch.where(has_keys, sum(weights), 1.0)
    exact_out = (
        sum(w[..., None] * wide[f"out_{s}"] for s, w in zip("ab", weights, strict=True)) / total[..., None]
    )
    loss = (exact_out * dout).sum() + (total.log() * dlse).sum()
    for one, other in zip(got, torch.autograd.grad(loss, [*wide.values()]), strict=True):
        torch.testing.assert_close(one, other.float(), rtol=1e-4, atol=1e-5)
