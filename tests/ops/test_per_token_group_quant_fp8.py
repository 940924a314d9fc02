"""per_token_group_quant_fp8: the cast of every value, the scale factors, and what a round trip loses."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moela import testing
from moela.reference.per_token_group_quant_fp8 import cast_e4m3
from torch import Tensor

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
NAN, INF = float("nan"), float("inf")
SF_MIN = 2.0**-126

# One example is one call; Triton's interpreter takes its time. The examples are the same in every run.
properties = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)
shapes = st.tuples(st.integers(0, 5), st.integers(1, 300))
dtypes = st.sampled_from([BF16, FP16, FP32])
group_sizes = st.sampled_from([1, 7, 32, 64, 128, 1000])


def floats(bits: list[str]) -> Tensor:
    return torch.tensor([int(b, 16) for b in bits], dtype=torch.int64).to(torch.int32).view(FP32)


def quantize(run: Any, x: Tensor, group_size: int = 128, ue8m0: bool = False) -> tuple[Tensor, Tensor]:
    q, sf = run({"x": x.to(run.device), "group_size": group_size, "ue8m0": ue8m0})
    return q.cpu(), sf.cpu()


def dequantize(q: Tensor, sf: Tensor, group_size: int = 128) -> Tensor:
    """In float64, where the product of a code and a scale factor is exact."""
    return q.double() * sf.double().repeat_interleave(group_size, -1)[..., : q.size(-1)]


def example(shape: tuple[int, int], dtype: torch.dtype, seed: int) -> Tensor:
    """Normal values, with rows and elements of very different size, and zeros."""
    g = torch.Generator().manual_seed(seed)
    row = torch.exp2(torch.randint(-30, 30, (shape[0], 1), generator=g).float())
    element = torch.exp2(torch.randint(-12, 1, shape, generator=g).float())
    x = torch.randn(shape, generator=g) * row * element * (torch.rand(shape, generator=g) > 0.1)
    return x.clamp(-6e4, 6e4).to(dtype)


def test_casts_every_golden_value_to_the_code_of_nvidia_and_ml_dtypes(run, golden_fp8):
    table = golden_fp8["cvt"]["e4m3"]
    values, codes = floats(table["f32_bits"]), torch.tensor(table["satfinite"], dtype=torch.uint8)
    in_range = values.abs() <= 448  # a larger one would change the scale factor of its group
    values, codes = values[in_range], codes[in_range]
    assert len(values) > 1200
    groups = -(-len(values) // 127)
    x, expected = torch.zeros(groups, 128), torch.zeros(groups, 128, dtype=torch.uint8)
    x[:, 0], expected[:, 0] = 448, 0x7E  # the largest of each group: its scale factor is exactly 1
    x[:, 1:] = torch.cat([values, values.new_zeros(groups * 127 - len(values))]).view(groups, 127)
    expected[:, 1:] = torch.cat([codes, codes.new_zeros(groups * 127 - len(codes))]).view(groups, 127)
    q, sf = quantize(run, x)
    assert (sf == 1).all()
    wrong = q.view(torch.uint8) != expected
    assert not wrong.any(), f"{x[wrong][:5].tolist()}: got {q[wrong][:5].tolist()}"


def test_the_cast_of_the_reference_clamps_what_is_larger(golden_fp8):
    table = golden_fp8["cvt"]["e4m3"]
    values, codes = floats(table["f32_bits"]), torch.tensor(table["satfinite"], dtype=torch.uint8)
    got = cast_e4m3(values).view(torch.uint8)
    nan = values.isnan()
    assert ((got == codes) | nan).all()
    assert (got[nan] & 0x7F == 0x7F).all()


def test_rounds_scale_factors_up_to_the_golden_power_of_two(run, golden_fp8):
    table = golden_fp8["ue8m0_scale"]
    wanted = floats(table["f32_bits"])
    amax = wanted * 448
    usable = (amax.isfinite()) & (amax / 448 == wanted) & (wanted >= SF_MIN)  # those that an amax can ask for
    assert usable.sum() > 60
    x = torch.zeros(int(usable.sum()), 3)
    x[:, 1] = -amax[usable]
    _, sf = quantize(run, x, group_size=3, ue8m0=True)
    assert torch.equal(sf[:, 0], torch.exp2(torch.tensor(table["ceil"])[usable].double() - 127).float())


def test_a_zero_group_gives_zeros_and_the_smallest_scale_factor(run):
    for ue8m0 in (False, True):
        for dtype in (BF16, FP32):
            x = torch.zeros(3, 300, dtype=dtype)
            x[1] = -0.0
            q, sf = quantize(run, x, ue8m0=ue8m0)
            assert (sf == SF_MIN).all()
            assert (q.double() == 0).all()


def test_a_subnormal_group_divides_by_the_smallest_scale_factor(run):
    x = torch.tensor([[2.0**-126, -(2.0**-127), 2.0**-135, 2.0**-149]])
    q, sf = quantize(run, x)
    assert sf.item() == SF_MIN
    assert q.double().tolist() == [[1.0, -0.5, 2.0**-9, 0.0]]


@pytest.mark.parametrize("ue8m0", [False, True])
@pytest.mark.parametrize("values", [[NAN], [INF], [-INF], [INF, NAN], [INF, -INF]], ids=str)
def test_a_group_with_nan_or_inf_has_it_as_its_factor_and_dequantizes_to_nan(run, values, ue8m0):
    for dtype in (BF16, FP16, FP32):
        x = example((3, 300), dtype, seed=1)
        clean_q, clean_sf = quantize(run, x, ue8m0=ue8m0)
        x[1, 130 : 130 + len(values)] = torch.tensor(values).to(dtype)
        q, sf = quantize(run, x, ue8m0=ue8m0)
        assert sf[1, 1].isnan() if NAN in values else sf[1, 1] == INF
        spoiled = torch.zeros(3, 300, dtype=torch.bool)
        spoiled[1, 128:256] = True
        assert torch.equal(dequantize(q, sf).isnan(), spoiled)
        assert torch.equal(q.view(torch.uint8)[~spoiled], clean_q.view(torch.uint8)[~spoiled])
        sf[1, 1] = clean_sf[1, 1]
        assert testing.same_bits(sf, clean_sf)


@properties
@given(shape=shapes, dtype=dtypes, group_size=group_sizes, ue8m0=st.booleans(), seed=st.integers(0, 10**6))
def test_equals_the_definition_bit_by_bit(run, shape, dtype, group_size, ue8m0, seed):
    inputs = {"x": example(shape, dtype, seed), "group_size": group_size, "ue8m0": ue8m0}
    q, sf = quantize(run, *inputs.values())
    ref_q, ref_sf = run.spec.reference(**inputs)
    assert testing.same_bits(sf, ref_sf)
    assert testing.same_bits(q, ref_q)


@properties
@given(shape=shapes, dtype=dtypes, group_size=group_sizes, ue8m0=st.booleans(), seed=st.integers(0, 10**6))
def test_a_round_trip_loses_no_more_than_the_docstring_says(run, shape, dtype, group_size, ue8m0, seed):
    x = example(shape, dtype, seed)
    q, sf = quantize(run, x, group_size, ue8m0)
    wide = sf.double().repeat_interleave(group_size, -1)[..., : x.size(-1)]
    error = 2.0**-4 * x.double().abs() + 2.0**-10 * wide
    testing.assert_within(dequantize(q, sf, group_size), x.double(), error)
    if ue8m0:
        assert (torch.frexp(sf).mantissa == 0.5).all()


@properties
@given(shape=shapes, group_size=group_sizes, seed=st.integers(0, 10**6))
def test_with_powers_of_two_a_second_round_trip_changes_nothing(run, shape, group_size, seed):
    """Then q * sf is exact, and a group's largest is 224 to 448 sf: sf stays, or it halves and q doubles.

    Without ue8m0 the second sf may differ in its last bit, and nothing follows.
    """
    once = dequantize(*quantize(run, example(shape, FP32, seed), group_size, True), group_size)
    twice = dequantize(*quantize(run, once.float(), group_size, True), group_size)
    assert torch.equal(once, twice)


def test_takes_any_leading_dimensions_and_strides(run):
    x = example((24, 200), BF16, seed=2)
    q, sf = quantize(run, x)
    for shape in ((24, 200), (2, 12, 200), (2, 3, 4, 200)):
        got_q, got_sf = quantize(run, x.view(shape))
        assert testing.same_bits(got_q, q.view(shape))
        assert testing.same_bits(got_sf, sf.view(*shape[:-1], 2))
    permuted_q, permuted_sf = quantize(run, x.view(4, 6, 200).transpose(0, 1))
    assert testing.same_bits(permuted_q, q.view(4, 6, 200).transpose(0, 1))
    assert testing.same_bits(permuted_sf, sf.view(4, 6, 2).transpose(0, 1))
    expanded_q, _ = quantize(run, x[:1].expand(5, 200))
    assert testing.same_bits(expanded_q, q[:1].expand(5, 200))
    one_q, one_sf = quantize(run, x[0])
    assert testing.same_bits(one_q, q[0])
    assert testing.same_bits(one_sf, sf[0])


def test_a_group_may_be_longer_than_the_row(run):
    x = example((3, 5), FP32, seed=3)
    whole_q, whole_sf = quantize(run, x, group_size=5)
    for group_size in (6, 128, 2**40):
        q, sf = quantize(run, x, group_size)
        assert testing.same_bits(sf, whole_sf)
        assert testing.same_bits(q, whole_q)


def test_rows_and_batches_may_be_empty(run):
    for shape in ((0, 5), (3, 0), (2, 0, 128)):
        q, sf = quantize(run, torch.zeros(shape))
        assert q.shape == shape
        assert sf.shape == (*shape[:-1], -(-shape[-1] // 128))
