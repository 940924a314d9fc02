"""fp8_gemm: values at the ends of every type, against the definition in float64."""

import re
from typing import Any

import moela
import pytest
import torch
from moela import testing
from moela.ops._spec import rounding
from moela.ops.fp8_gemm import exact, make_inputs
from moela.reference.fp8_gemm import dequantize_blocks
from torch import Tensor

BF16, FP16, FP32, E4M3 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn
FLOATS = (BF16, FP16, FP32)
NAN, INF = float("nan"), float("inf")
BLOCK = 128

# Partial sums and factors are float32. Up to here none can overflow, whatever the order of the sum.
OVERFLOW = 2.0**128 * (1 - 2.0**-10)
HALF_SUBNORMAL = 2.0**-150  # what rounding to the smallest float32 loses

# One per row of a; a row of 3e38 overflows in most columns, of 1e-45 is 0 or the smallest subnormal.
ROW_SIZES = (1.0, 1e30, 3e38, 1e-30, 1e-38, 1e-45, 0.0, -0.0)


def hostile_bound(inputs: dict[str, Any], accum: float) -> tuple[Tensor, Tensor, Tensor]:
    """(exact, allowed error, whether an intermediate may overflow), each [M, N].

    To the bound of the docstring it adds what float32 loses below 2^-126: half a smallest subnormal for each
    of the 128 sums of a block, times its scale factors, and for each product with a scale factor.
    """
    d, magnitude = exact(**inputs)
    M, N = d.shape
    sf_b = inputs["sf_b"].double().abs()
    sf_a = torch.ones(M, sf_b.size(1)) if inputs["sf_a"] is None else inputs["sf_a"]
    sf_a = sf_a.double().abs()
    underflow = torch.full_like(d, HALF_SUBNORMAL)
    overflows = magnitude > OVERFLOW
    for i in range(sf_b.size(1)):
        k = slice(i * BLOCK, (i + 1) * BLOCK)
        raw = (
            inputs["a"][:, k].double().abs() @ inputs["b"][:, k].double().abs().T
        )  # [M, N]: before the factors
        x, y = sf_a[:, i, None], sf_b[:, i].repeat_interleave(BLOCK)[None, :N]
        underflow += HALF_SUBNORMAL * (BLOCK * x * y + x + y + raw + 1)
        overflows |= torch.stack([raw, raw * x, raw * y, (x * y).expand_as(raw)]).amax(0) > OVERFLOW
    return d, rounding(d, inputs["out_dtype"]) + accum * magnitude + underflow, overflows


def assert_never_finite_and_wrong(run: Any, inputs: dict[str, Any]) -> Tensor:
    """Every element is within its bound, or Inf or NaN where an intermediate may overflow.

    Where d is beyond the output type it is an infinity of the right sign. Returns what was excused.
    """
    (got,) = run(inputs)
    cpu = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in inputs.items()}
    d, error, overflows = hostile_bound(cpu, run.accum(inputs))
    got = got.cpu().double()
    too_large = (d.abs() + error >= torch.finfo(inputs["out_dtype"]).max) & (got == d.sign() * INF)
    excused = (overflows & ~got.isfinite()) | too_large
    testing.assert_within(torch.where(excused, d, got), d, error, "fp8_gemm")
    return excused


def rows_of_every_size(run: Any, a_dtype: torch.dtype, out_dtype: torch.dtype) -> dict[str, Any]:
    inputs = run.inputs(M=len(ROW_SIZES) + 1, N=33, K=200, a_dtype=a_dtype, out_dtype=out_dtype)
    g = torch.Generator().manual_seed(3)
    sizes = torch.tensor([*ROW_SIZES, 1.0])[:, None]
    a = (torch.rand(len(sizes), 200, generator=g) * 2 - 1) * sizes
    a[-1] *= torch.tensor(ROW_SIZES).repeat(25)  # every size in one row
    return inputs | {"a": a.clamp(-3.3e38, 3.3e38).to(a_dtype).to(run.device)}


@pytest.mark.parametrize("out_dtype", FLOATS, ids=str)
@pytest.mark.parametrize("a_dtype", [BF16, FP32], ids=str)
def test_huge_tiny_and_subnormal_activations_never_give_a_finite_wrong_number(run, a_dtype, out_dtype):
    inputs = rows_of_every_size(run, a_dtype, out_dtype)
    excused = assert_never_finite_and_wrong(run, inputs).any(1).nonzero().flatten().tolist()
    large = {2, len(ROW_SIZES)} | ({1} if out_dtype == FP16 else set())  # 1e30 is an Inf in float16
    assert set(excused) <= large
    for m in range(0, len(inputs["a"]), 4 if run.is_slow else 1):
        assert_never_finite_and_wrong(run, inputs | {"a": inputs["a"][m : m + 1]})


def test_tiny_products_are_kept_when_the_scale_factor_makes_them_large(run):
    """2^-120 * 2^-9 is subnormal in float32, and 2^120 brings it back: nothing may be flushed to zero."""
    a = torch.full((2, 1), 2.0**-120, device=run.device)
    b = torch.full((3, 1), 2.0**-9, device=run.device).to(E4M3)
    sf_b = torch.full((1, 1), 2.0**120, device=run.device)
    (got,) = run({"a": a, "sf_a": None, "b": b, "sf_b": sf_b, "out_dtype": FP32})
    assert (got == 2.0**-9).all()


@pytest.mark.parametrize("M", [1, 2, 9])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("a_dtype", FLOATS, ids=str)
def test_nan_and_inf_activations_reach_their_own_row_only(run, a_dtype, value, M):
    inputs = run.inputs(M=M, N=33, K=200, a_dtype=a_dtype, out_dtype=FP32)
    inputs["b"][5, 199] = 0  # Inf * 0 is NaN
    inputs["a"][M // 2, 199] = value
    (exact_d, error), (got,) = run.spec.bound(inputs, run.accum(inputs))[0], run(inputs)
    testing.assert_within(got, exact_d, torch.nan_to_num(error, posinf=0.0), "fp8_gemm")
    assert not got[M // 2].isfinite().any()
    assert got[M // 2, 5].isnan()


def every_code(device: str) -> Tensor:
    return torch.arange(256, dtype=torch.uint8, device=device).view(E4M3)


@pytest.mark.parametrize("k", [0, 127, 128, 199])
@pytest.mark.parametrize("M", [1, 9])
def test_every_code_of_b_counts_and_a_nan_code_makes_exactly_its_column_nan(run, M, k):
    inputs = run.inputs(M=M, N=256, K=200, a_dtype=BF16, out_dtype=FP32)
    inputs["b"][:, k] = every_code(run.device)
    for a in (inputs["a"], torch.zeros_like(inputs["a"])):  # 0 * NaN is NaN too
        spoiled = inputs | {"a": a}
        (exact_d, error), (got,) = run.spec.bound(spoiled, run.accum(spoiled))[0], run(spoiled)
        testing.assert_within(got, exact_d, error, "fp8_gemm")
        assert got.isnan().all(0).nonzero().flatten().tolist() == [0x7F, 0xFF]
        assert got.isnan().any(0).sum() == 2


@pytest.mark.parametrize("k", [0, 199])
def test_every_code_of_a_counts_and_a_nan_code_makes_exactly_its_row_nan(run, k):
    inputs = run.inputs(M=256, N=17, K=200, out_dtype=FP32)
    inputs["a"][:, k] = every_code(run.device)
    (exact_d, error), (got,) = run.spec.bound(inputs, run.accum(inputs))[0], run(inputs)
    testing.assert_within(got, exact_d, error, "fp8_gemm")
    assert got.isnan().all(1).nonzero().flatten().tolist() == [0x7F, 0xFF]
    assert got.isnan().any(1).sum() == 2


SF_VALUES = (2.0**-126, 2.0**-149, 1e30, 0.0, 1.0, NAN, INF)


@pytest.mark.parametrize("a_dtype", [E4M3, BF16], ids=str)
@pytest.mark.parametrize("M", [1, 9])
def test_scale_factors_of_b_may_have_any_value(run, M, a_dtype):
    inputs = run.inputs(M=M, N=BLOCK * len(SF_VALUES), K=130, a_dtype=a_dtype, out_dtype=FP32)
    inputs["sf_b"][:, 1] = torch.tensor(SF_VALUES)
    (got,) = run(inputs)
    columns = dict(zip(SF_VALUES, got.split(BLOCK, dim=1), strict=True))
    assert columns[NAN].isnan().all()
    assert not columns[INF].isfinite().any()
    finite = BLOCK * 5
    few = {"b": inputs["b"][:finite], "sf_b": inputs["sf_b"][:5]}
    assert_never_finite_and_wrong(run, inputs | few)


@pytest.mark.parametrize("M", [1, 9])
def test_scale_factors_of_a_may_have_any_value(run, M):
    for value in SF_VALUES:
        inputs = run.inputs(M=M, N=20, K=130, out_dtype=FP32)
        (before,) = run(inputs)
        inputs["sf_a"][M // 2, 1] = value
        (got,) = run(inputs)
        others = [m for m in range(M) if m != M // 2]
        assert testing.same_bits(got[others], before[others])
        if value != value:
            assert got[M // 2].isnan().all()
        elif value == INF:
            assert not got[M // 2].isfinite().any()
        else:
            assert_never_finite_and_wrong(run, inputs)


@pytest.mark.parametrize("M", [1, 9])
def test_scale_factors_of_b_have_the_same_meaning_in_every_dtype(run, M):
    inputs = run.inputs(M=M, N=300, K=300, sf_dtype=torch.float8_e8m0fnu, bias=True)
    (e8m0,) = run(inputs)
    for dtype in (FP32, BF16):
        (got,) = run(inputs | {"sf_b": inputs["sf_b"].to(dtype)})
        assert testing.same_bits(got, e8m0), dtype


def test_bias_has_the_same_meaning_in_every_dtype(run):
    inputs = run.inputs(M=3, N=40, K=130, bias=True)
    bias = inputs["bias"].to(BF16).to(FP16)  # its values are in all three
    (fp32,) = run(inputs | {"bias": bias.float()})
    for dtype in (BF16, FP16):
        assert testing.same_bits(run(inputs | {"bias": bias.to(dtype)})[0], fp32), dtype


def test_bias_is_added_before_the_rounding(run):
    a = torch.ones(1, 2, dtype=BF16, device=run.device)
    b = torch.tensor([[1, 2.0**-8]], device=run.device).to(E4M3)  # halfway between two bfloat16: rounds to 1
    inputs = {"a": a, "sf_a": None, "b": b, "sf_b": torch.ones(1, 1, device=run.device)}
    assert run(inputs)[0].item() == 1
    assert run(inputs | {"bias": torch.tensor([2.0**-20], device=run.device)})[0].item() == 1 + 2.0**-7


def test_without_columns_of_k_d_is_the_bias(run):
    for a_dtype in (E4M3, BF16):
        inputs = run.inputs(M=3, N=5, K=0, a_dtype=a_dtype, out_dtype=FP32, bias=True)
        (got,) = run(inputs)
        assert testing.same_bits(got, inputs["bias"].expand(3, 5))
        assert (run(inputs | {"bias": None})[0] == 0).all()


SHAPES = [(1, 1, 1), (2, 1, 7168), (3, 15, 127), (8, 17, 129), (4, 576, 200), (1, 129, 1030), (13, 31, 257)]


@pytest.mark.parametrize(("M", "N", "K"), SHAPES)
@pytest.mark.parametrize("a_dtype", [E4M3, *FLOATS], ids=str)
def test_any_n_and_k_in_every_dtype(run, a_dtype, M, N, K):
    out_dtypes = FLOATS
    if run.is_slow:  # a Latin square: each with each shape, and with each type of a
        out_dtypes = [FLOATS[(SHAPES.index((M, N, K)) + (E4M3, *FLOATS).index(a_dtype)) % 3]]
    for out_dtype in out_dtypes:
        inputs = run.inputs(M=M, N=N, K=K, a_dtype=a_dtype, out_dtype=out_dtype, bias=True, seed=N)
        (exact_d, error), (got,) = run.spec.bound(inputs, run.accum(inputs))[0], run(inputs)
        testing.assert_within(got, exact_d, error, "fp8_gemm")


def test_writes_nothing_outside_a_strided_d(run):
    for a_dtype, M, N in ((BF16, 1, 33), (E4M3, 9, 130)):
        for out_dtype in FLOATS:
            inputs = run.inputs(M=M, N=N, K=200, a_dtype=a_dtype, out_dtype=out_dtype)
            big = torch.full((M + 2, N + 7), -7, dtype=out_dtype, device=run.device)
            run.out(inputs, {"d": big[1 : M + 1, 3 : N + 3]})
            assert testing.same_bits(big[1 : M + 1, 3 : N + 3], run(inputs)[0])
            big[1 : M + 1, 3 : N + 3] = -7
            assert (big == -7).all()


@pytest.mark.parametrize("M", [1, 4, 64])
@pytest.mark.parametrize("a_dtype", [BF16, FP32], ids=str)
def test_cpu_loses_less_than_two_in_ten_million_over_7168_columns(make_runner, a_dtype, M):
    run = make_runner("fp8_gemm", "cpu-cpu")
    inputs = run.inputs(M=M, N=256, K=7168, a_dtype=a_dtype, out_dtype=FP32)
    exact_d, _ = exact(**inputs)
    assert (run(inputs)[0].double() - exact_d).norm() <= 2e-7 * exact_d.norm()


def test_compiled_code_fuses_around_it():
    """The default backend inside a graph with work before and after it, through the C++ of inductor."""
    inputs = moela.ops.SPECS["fp8_gemm"].make_inputs(M=4, N=40, K=200, a_dtype=BF16)

    def f(a: Tensor) -> Tensor:
        return moela.fp8_gemm(a * 2, None, inputs["b"], inputs["sf_b"]).float() + 1

    torch._dynamo.reset()
    got = torch.compile(f, fullgraph=True)(inputs["a"])
    assert testing.same_bits(got, f(inputs["a"]))


# --- autograd --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_derivative_by_a_is_that_of_the_formula_with_frozen_weights(run, dtype):
    """The weights are rounded to the gradient's dtype, and the result to a's."""
    inputs = run.inputs(M=5, N=192, K=200, a_dtype=dtype, out_dtype=dtype)
    a = inputs["a"].requires_grad_()
    (d,) = run(inputs)
    grad = torch.randn(d.shape, generator=torch.Generator().manual_seed(6)).to(d)
    d.backward(grad)
    w = dequantize_blocks(inputs["b"], inputs["sf_b"]).double()
    wanted, magnitude = grad.double() @ w, grad.double().abs() @ w.abs()
    u = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-24
    assert ((a.grad.double() - wanted).abs() <= u * wanted.abs() + (u + 2.0**-20) * magnitude).all()


@pytest.mark.parametrize(
    ("name", "todo"),
    [("sf_b", "call sf_b.requires_grad_(False)"), ("bias", "add it to the result")],
)
def test_what_has_no_derivative_is_an_error_that_names_it(name, todo):
    inputs = make_inputs(M=2, N=128, K=128, a_dtype=torch.bfloat16, bias=True)
    inputs[name].requires_grad_()
    d = moela.fp8_gemm(**inputs)
    assert d.requires_grad
    message = f"fp8_gemm: {name}: has no derivative; {todo}"
    with pytest.raises(NotImplementedError, match=re.escape(message)):
        d.sum().backward()
