"""moe_unpermute: the sum, its order, what is not read, and its derivative."""

from typing import Any

import moela
import pytest
import torch
from moela import testing
from moela.ops._spec import rounding
from torch import Tensor

NAN = float("nan")


def unpermute(run: Any, y: Tensor, weights: Tensor | None, inverse: Tensor | list) -> Tensor:
    args = {"y": y, "topk_weights": weights, "inverse": torch.as_tensor(inverse, dtype=torch.int32)}
    (out,) = run({k: v if v is None else v.to(run.device) for k, v in args.items()})
    return out.cpu()


def test_is_the_formula_of_the_docstring(run):
    y = torch.tensor([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]])
    weights = torch.tensor([[0.5, 2.0], [3.0, 4.0]])
    out = unpermute(run, y, weights, [[2, 0], [1, -1]])
    assert out.tolist() == [[52.0, 104.0], [30.0, 60.0]]
    assert unpermute(run, y, None, [[2, 0], [1, -1]]).tolist() == [[101.0, 202.0], [10.0, 20.0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_is_within_rounding_of_the_exact_sum(run, dtype):
    """float32: a product and a sum per slot, 2^-24 each of at most the sum of magnitudes; then y's dtype."""
    inputs = run.inputs(T=9, H=70, topk=5, x_dtype=dtype)
    y, weights, inverse = (inputs[n].cpu() for n in ("y", "topk_weights", "inverse"))
    terms = y.double()[inverse.long()] * weights[..., None]  # [T, topk, H]
    terms = torch.where(inverse[..., None] >= 0, terms, 0.0)
    exact, magnitude = terms.sum(1), terms.abs().sum(1)
    error = 2.0**-24 * 6 * magnitude
    testing.assert_within(
        unpermute(run, y, weights, inverse), exact, error + rounding(exact.abs() + error, dtype)
    )


def test_adds_slot_after_slot_and_rounds_products(run):
    """Another order, or a fused multiply-add, gives other bits for these."""
    big, one = 2.0**24, 1.0
    y = torch.tensor([[big], [one], [one], [-big]])
    ones = torch.ones(1, 4)
    assert unpermute(run, y, ones, [[0, 1, 2, 3]]).item() == 0.0
    assert unpermute(run, y, ones, [[0, 3, 1, 2]]).item() == 2.0
    a = 1 + 2.0**-12
    assert unpermute(run, torch.tensor([[-1.0], [a]]), torch.tensor([[1.0, a]]), [[0, 1]]).item() == 2.0**-11


def test_what_is_no_row_contributes_nothing(run):
    y = torch.tensor([[1.0], [2.0], [NAN]])
    strange = [-1, 3, 2**31 - 1, -(2**31)]
    weights = torch.tensor([[NAN, NAN, NAN, NAN, 2.0]])
    assert unpermute(run, y, weights, [[*strange, 1]]).item() == 4.0
    assert unpermute(run, y, None, [strange]).item() == 0.0
    assert unpermute(run, y[:0], torch.ones(2, 3), torch.zeros(2, 3)).tolist() == [[0.0], [0.0]]


def test_nan_and_infinity_of_named_rows_stay(run):
    y = torch.tensor([[float("inf"), NAN, 1.0], [1.0, 1.0, 1.0]])
    out = unpermute(run, y, torch.tensor([[1.0, 2.0], [0.0, 1.0]]), [[0, 1], [0, 1]])
    assert out[0].tolist()[0] == float("inf")
    assert out.isnan().tolist() == [[False, True, False], [True, True, False]]  # 0 * Inf


@pytest.mark.parametrize("has_weights", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_derivative_is_that_of_the_formula(run, dtype, has_weights):
    """Against torch's autograd in float64. Rows that are named by nobody hold NaN and get 0."""
    inputs = run.inputs(T=6, H=33, topk=3, x_dtype=dtype, has_weights=has_weights)
    y, inverse = inputs["y"].requires_grad_(), inputs["inverse"]
    weights = inputs["topk_weights"]
    if has_weights:
        weights.requires_grad_()
    (out,) = run(inputs)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(6)).to(out)
    out.backward(grad)

    exact_y = y.detach().double().nan_to_num().requires_grad_()
    exact_w = (
        (weights if has_weights else torch.ones(inverse.shape))
        .detach()
        .double()
        .to(y.device)
        .requires_grad_()
    )
    is_row = (inverse >= 0)[..., None]
    terms = torch.where(is_row, exact_y[inverse.clamp(min=0).long()] * exact_w[..., None], 0.0)
    terms.sum(1).backward(grad.double())
    tolerance = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-20
    torch.testing.assert_close(y.grad.double(), exact_y.grad, rtol=tolerance, atol=1e-30)
    if has_weights:
        # float32 sums of H products.
        magnitude = terms.detach().abs().amax() * grad.double().abs().amax() * 33
        torch.testing.assert_close(
            weights.grad.double(), exact_w.grad, rtol=0, atol=2.0**-20 * magnitude.item()
        )


def test_rows_that_are_named_twice_get_both_gradients(run):
    y = torch.ones(3, 2, device=run.device, requires_grad=True)
    weights = torch.tensor([[1.0, 2.0], [4.0, 8.0]], device=run.device)
    (out,) = run(
        {
            "y": y,
            "topk_weights": weights,
            "inverse": torch.tensor([[0, 1], [0, -1]], dtype=torch.int32, device=run.device),
        }
    )
    out.sum().backward()
    assert y.grad.tolist() == [[5.0, 5.0], [2.0, 2.0], [0.0, 0.0]]


def test_compiles_with_its_derivative_as_one_graph(op):
    inputs = moela.ops.SPECS[op].make_inputs(T=5, H=12, topk=3, x_dtype=torch.float32)

    def gradients(function: Any) -> tuple[Tensor, Tensor]:
        y, weights = (inputs[n].clone().requires_grad_() for n in ("y", "topk_weights"))
        function(y, weights, inputs["inverse"]).square().sum().backward()
        return y.grad, weights.grad

    torch._dynamo.reset()
    compiled = torch.compile(moela.moe_unpermute, fullgraph=True, backend="aot_eager")
    for got, expected in zip(gradients(compiled), gradients(moela.moe_unpermute), strict=True):
        assert testing.same_bits(got, expected)
