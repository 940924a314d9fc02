"""The checker itself: it must fail on each fault that a kernel may have, and pass what is right."""

import pytest
import torch
from moela import testing
from moela.ops import SPECS
from moela.reference.fp8_gemm import dequantize_blocks, dequantize_rows
from torch import Tensor

NAN, INF = float("nan"), float("inf")
GEMM = SPECS["fp8_gemm"]


@pytest.fixture(scope="module")
def inputs():
    return GEMM.make_inputs(M=65, N=192, K=2048)


@pytest.fixture(scope="module")
def right(inputs):
    return GEMM.reference(**inputs)


def check(inputs: dict, got: Tensor) -> None:
    [(exact, error)] = GEMM.bound(inputs, testing.FLOAT32_SUM)
    testing.assert_within(got, exact, error, "fp8_gemm")


def operands(inputs: dict) -> tuple[Tensor, Tensor]:
    a = dequantize_rows(inputs["a"], inputs["sf_a"], torch.float64)
    return a, dequantize_blocks(inputs["b"], inputs["sf_b"], torch.float64)


def test_passes_the_definition(inputs, right):
    check(inputs, right)


def test_passes_a_float32_sum_in_any_order(inputs):
    a, b = operands(inputs)
    for order in (slice(None), torch.randperm(2048, generator=torch.Generator().manual_seed(1))):
        check(inputs, (a[:, order].float() @ b[:, order].float().T).bfloat16())


def test_fails_on_a_zeroed_row(inputs, right):
    got = right.clone()
    got[64] = 0
    with pytest.raises(
        AssertionError, match=r"fp8_gemm: 192 of 12480 elements out of bounds, first at \[64, 0\]"
    ):
        check(inputs, got)


def test_fails_on_one_element_off_by_one_rounding_too_many(inputs, right):
    got = right.clone()
    got[3, 7] *= 1 + 2.0**-7
    with pytest.raises(
        AssertionError, match=r"1 of 12480 elements out of bounds, first at \[3, 7\]: got .*, exact"
    ):
        check(inputs, got)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_fails_on_one_nan_or_inf(inputs, right, value):
    got = right.clone()
    got[0, 191] = value
    with pytest.raises(AssertionError, match=r"1 of 12480 elements out of bounds, first at \[0, 191\]"):
        check(inputs, got)


@pytest.mark.parametrize("k", [0, 1024, 2047])
def test_fails_on_one_dropped_product(inputs, k):
    a, b = operands(inputs)
    a[:, k] = 0
    with pytest.raises(AssertionError, match="out of bounds"):
        check(inputs, (a @ b.T).bfloat16())


def test_fails_on_operands_rounded_to_bfloat16(inputs):
    a, b = operands(inputs)
    with pytest.raises(AssertionError, match="out of bounds"):
        check(inputs, (a.bfloat16().double() @ b.bfloat16().double().T).bfloat16())


def test_fails_on_one_block_with_a_scale_factor_off_by_a_64th(inputs):
    sf_b = inputs["sf_b"].clone()
    sf_b[1, 9] *= 1 + 2.0**-6
    with pytest.raises(AssertionError, match="out of bounds"):
        check(inputs, GEMM.reference(**inputs | {"sf_b": sf_b}))


def test_fails_on_truncation_instead_of_rounding(inputs):
    a, b = operands(inputs)
    bits = (a @ b.T).float().view(torch.int32)
    with pytest.raises(AssertionError, match="out of bounds"):
        check(inputs, (bits & ~0xFFFF).view(torch.float32).bfloat16())


def test_fails_on_a_sum_in_bfloat16(inputs):
    a, b = operands(inputs)
    halves = (a[:, :1024] @ b[:, :1024].T).bfloat16(), (a[:, 1024:] @ b[:, 1024:].T).bfloat16()
    with pytest.raises(AssertionError, match="out of bounds"):
        check(inputs, halves[0] + halves[1])


def test_fails_on_another_shape(inputs, right):
    with pytest.raises(AssertionError, match=r"fp8_gemm: expected shape \[65, 192\], got \[65, 191\]"):
        check(inputs, right[:, :-1])
    with pytest.raises(AssertionError, match="expected shape"):
        check(inputs, right[0])  # would broadcast


def test_nan_is_right_exactly_where_the_definition_has_it():
    exact, error = torch.tensor([NAN, 1.0]).double(), torch.tensor([NAN, 0.1]).double()
    testing.assert_within(torch.tensor([NAN, 1.0]), exact, error)
    for got in ([1.0, 1.0], [NAN, NAN], [INF, 1.0]):
        with pytest.raises(AssertionError, match="1 of 2"):
            testing.assert_within(torch.tensor(got), exact, error)


def test_an_infinity_is_right_with_its_sign_only():
    exact, error = torch.tensor([INF]).double(), torch.tensor([0.1]).double()
    testing.assert_within(torch.tensor([INF]), exact, error)
    for got in (-INF, 3e38, NAN):
        with pytest.raises(AssertionError, match="1 of 1"):
            testing.assert_within(torch.tensor([got]), exact, error)


def test_an_infinite_error_allows_no_finite_number_for_an_infinity():
    """A bound that is computed from Inf inputs is Inf itself; it must not switch the check off."""
    exact = error = torch.tensor([INF]).double()
    with pytest.raises(AssertionError, match="1 of 1"):
        testing.assert_within(torch.tensor([1.0]), exact, error)


def test_without_an_allowed_error_every_value_must_be_equal():
    exact = torch.tensor([0.0, 1.0, 2.0**-149]).double()
    testing.assert_within(exact.float(), exact, torch.zeros(3).double())
    with pytest.raises(AssertionError, match=r"first at \[2\]"):
        testing.assert_within(torch.tensor([0.0, 1.0, 0.0]), exact, torch.zeros(3).double())


FLOAT_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e8m0fnu)


@pytest.mark.parametrize("dtype", FLOAT_TYPES, ids=str)
def test_poisoned_rows_keep_their_values_and_have_nan_all_around(dtype):
    for shape in ((3, 4), (0, 4), (3, 0), (2, 3, 4)):
        values = torch.exp2(torch.arange(-3, 5).float()).repeat(3)[: torch.Size(shape).numel()].view(shape)
        t = values.to(dtype)
        view = testing.poisoned_rows(t, extra_rows=2, extra_cols=1)
        assert testing.same_bits(view, t)
        assert view.stride(-2) == shape[-1] + 1
        base = view._base.clone()
        around = base.view(dtype).view(*shape[:-2], shape[-2] + 2, shape[-1] + 1).float()
        assert around.isnan().sum() == around.numel() - t.numel()


def test_same_bits_tells_what_equality_cannot():
    zero, nan = torch.zeros(2), torch.full((2,), NAN)
    assert testing.same_bits(zero, zero.clone())
    assert testing.same_bits(nan, nan.clone())
    assert not testing.same_bits(zero, -zero)
    assert not testing.same_bits(zero, torch.zeros(3))
    assert not testing.same_bits(zero, torch.zeros(2, dtype=torch.float16))
    assert testing.same_bits(torch.zeros(2, 3).mT, torch.zeros(3, 2))
    assert testing.same_bits(torch.tensor(1.0), torch.tensor(1.0))
