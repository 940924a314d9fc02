"""per_block_quant_fp8: a scale factor per 128 x 128 block, down to the edges, and what a round trip loses."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moela import testing
from torch import Tensor

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
NAN, INF = float("nan"), float("inf")
BLOCK = 128

properties = settings(
    max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)
extents = st.sampled_from([1, 2, 127, 128, 129, 200, 257])
dtypes = st.sampled_from([BF16, FP16, FP32])


def quantize(run: Any, w: Tensor, ue8m0: bool = False) -> tuple[Tensor, Tensor]:
    q, sf = run({"w": w.to(run.device), "ue8m0": ue8m0})
    return q.cpu(), sf.cpu()


def dequantize(q: Tensor, sf: Tensor) -> Tensor:
    """In float64, where the product of a code and a scale factor is exact."""
    return q.double() * widen(sf, q.size(-2), q.size(-1))


def widen(sf: Tensor, N: int, K: int) -> Tensor:
    """[..., ceil(N/128), ceil(K/128)] -> [..., N, K]."""
    return sf.double().repeat_interleave(BLOCK, -2)[..., :N, :].repeat_interleave(BLOCK, -1)[..., :K]


def example(N: int, K: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Weights whose elements and rows have very different sizes."""
    g = torch.Generator().manual_seed(seed)
    sizes = torch.exp2(torch.randint(-20, 10, (N, 1), generator=g).float())
    return (torch.randn(N, K, generator=g) * sizes).clamp(-6e4, 6e4).to(dtype)


def test_casts_every_golden_value_to_the_code_of_nvidia_and_ml_dtypes(run, golden_fp8):
    table = golden_fp8["cvt"]["e4m3"]
    bits = torch.tensor([int(b, 16) for b in table["f32_bits"]], dtype=torch.int64)
    values, codes = bits.to(torch.int32).view(FP32), torch.tensor(table["satfinite"], dtype=torch.uint8)
    in_range = values.abs() <= 448  # a larger one would change the scale factor of its block
    w = torch.zeros(BLOCK, BLOCK)
    w.view(-1)[: int(in_range.sum())] = values[in_range]
    w[-1, -1] = -448  # the largest: the scale factor is exactly 1
    q, sf = quantize(run, w)
    assert sf.tolist() == [[1.0]]
    assert torch.equal(q.view(torch.uint8).view(-1)[: int(in_range.sum())], codes[in_range])
    assert q[-1, -1].item() == -448


def test_each_block_has_its_own_scale_factor(run):
    w = torch.zeros(300, 260)
    expected = torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.25, 7.0], [5.0, 6.0, 0.125]])
    corners = [(i * BLOCK, j * BLOCK) for i in range(3) for j in range(3)]
    for at_the_end in (False, True):  # the first element of each block, then its last
        w.zero_()
        for (n, k), value in zip(corners, expected.flatten().tolist(), strict=True):
            row, col = (min(n + 127, 299), min(k + 127, 259)) if at_the_end else (n, k)
            w[row, col] = -448 * value
        q, sf = quantize(run, w)
        assert torch.equal(sf, expected)
        assert torch.equal(dequantize(q, sf), w.double())


def test_a_zero_block_gives_zeros_and_the_smallest_scale_factor(run):
    for ue8m0 in (False, True):
        q, sf = quantize(run, torch.zeros(130, 129, dtype=BF16), ue8m0)
        assert (sf == 2.0**-126).all()
        assert (q.double() == 0).all()


@pytest.mark.parametrize("ue8m0", [False, True])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_block_with_nan_or_inf_has_it_as_its_factor_and_dequantizes_to_nan(run, value, ue8m0):
    for dtype in (BF16, FP32):
        w = example(200, 200, dtype, seed=1)
        clean_q, clean_sf = quantize(run, w, ue8m0)
        w[199, 5] = value
        q, sf = quantize(run, w, ue8m0)
        assert sf[1, 0].isnan() if value != value else sf[1, 0] == INF
        spoiled = torch.zeros(200, 200, dtype=torch.bool)
        spoiled[128:, :128] = True
        assert torch.equal(dequantize(q, sf).isnan(), spoiled)
        assert torch.equal(q.view(torch.uint8)[~spoiled], clean_q.view(torch.uint8)[~spoiled])
        sf[1, 0] = clean_sf[1, 0]
        assert testing.same_bits(sf, clean_sf)


@properties
@given(N=extents, K=extents, dtype=dtypes, ue8m0=st.booleans(), seed=st.integers(0, 10**6))
def test_equals_the_definition_bit_by_bit(run, N, K, dtype, ue8m0, seed):
    w = example(N, K, dtype, seed)
    q, sf = quantize(run, w, ue8m0)
    ref_q, ref_sf = run.spec.reference(w, ue8m0)
    assert testing.same_bits(sf, ref_sf)
    assert testing.same_bits(q, ref_q)


@properties
@given(N=extents, K=extents, dtype=dtypes, ue8m0=st.booleans(), seed=st.integers(0, 10**6))
def test_a_round_trip_loses_no_more_than_the_docstring_says(run, N, K, dtype, ue8m0, seed):
    w = example(N, K, dtype, seed)
    q, sf = quantize(run, w, ue8m0)
    error = 2.0**-4 * w.double().abs() + 2.0**-10 * widen(sf, N, K)
    testing.assert_within(dequantize(q, sf), w.double(), error)
    if ue8m0:
        assert (torch.frexp(sf).mantissa == 0.5).all()


@properties
@given(N=extents, K=extents, seed=st.integers(0, 10**6))
def test_with_powers_of_two_a_second_round_trip_changes_nothing(run, N, K, seed):
    """As in test_per_token_group_quant_fp8."""
    once = dequantize(*quantize(run, example(N, K, FP32, seed), ue8m0=True))
    twice = dequantize(*quantize(run, once.float(), ue8m0=True))
    assert torch.equal(once, twice)


def test_experts_are_quantized_one_by_one_with_any_leading_strides(run):
    w = torch.stack([example(130, 140, BF16, seed) for seed in range(6)])
    q, sf = quantize(run, w)
    for e in range(6):
        one_q, one_sf = quantize(run, w[e])
        assert testing.same_bits(q[e], one_q)
        assert testing.same_bits(sf[e], one_sf)
    grid = w.view(2, 3, 130, 140).transpose(0, 1)  # leading dimensions without a common stride
    grid_q, grid_sf = quantize(run, grid)
    assert testing.same_bits(grid_q, q.view(2, 3, 130, 140).transpose(0, 1))
    assert testing.same_bits(grid_sf, sf.view(2, 3, 2, 2).transpose(0, 1))
    every_other, _ = quantize(run, w[::2])
    assert testing.same_bits(every_other, q[::2])


def test_equals_the_activation_cast_where_blocks_have_one_row(run, make_runner):
    w = example(1, 300, BF16, seed=4)
    tokens = make_runner("per_token_group_quant_fp8", f"{run.backend}-{run.device}")
    for ue8m0 in (False, True):
        q, sf = quantize(run, w, ue8m0)
        token_q, token_sf = tokens({"x": w.to(run.device), "group_size": BLOCK, "ue8m0": ue8m0})
        assert testing.same_bits(q, token_q.cpu())
        assert testing.same_bits(sf, token_sf.cpu())


def test_extents_may_be_empty(run):
    for shape in ((0, 5), (3, 0), (0, 130, 130), (2, 0, 128)):
        q, sf = quantize(run, torch.zeros(shape))
        assert q.shape == shape
        assert sf.shape == (*shape[:-2], -(-shape[-2] // BLOCK), -(-shape[-1] // BLOCK))
