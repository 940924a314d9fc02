"""per_block_dequant_fp8: every code, every scale factor dtype, and the inverse of the cast."""

from typing import Any

import pytest
import torch
from moela import testing
from torch import Tensor

BF16, FP16, FP32, E4M3, E8M0 = (
    torch.bfloat16,
    torch.float16,
    torch.float32,
    torch.float8_e4m3fn,
    torch.float8_e8m0fnu,
)
DTYPES = (BF16, FP16, FP32)
NAN, INF = float("nan"), float("inf")
BLOCK = 128


def dequantize(run: Any, q: Tensor, sf: Tensor, dtype: torch.dtype = FP32) -> Tensor:
    (w,) = run({"q": q.to(run.device), "sf": sf.to(run.device), "dtype": dtype})
    return w.cpu()


def every_code() -> Tensor:
    """[2, 128]: all 256 codes, in one block."""
    return torch.arange(256, dtype=torch.uint8).view(2, 128).view(E4M3)


def golden_values(golden_fp8: dict[str, Any]) -> Tensor:
    bits = torch.tensor([int(b, 16) for b in golden_fp8["e4m3_codes"]], dtype=torch.int64)
    return bits.to(torch.int32).view(FP32).view(2, 128)


def assert_equal_or_both_nan(got: Tensor, expected: Tensor) -> None:
    """Equal as bits but for NaN, whose sign and payload mean nothing."""
    assert torch.equal(got.isnan(), expected.isnan())
    assert testing.same_bits(torch.nan_to_num(got, nan=0.0), torch.nan_to_num(expected, nan=0.0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_decodes_all_256_codes_to_the_golden_values(run, golden_fp8, dtype):
    w = dequantize(run, every_code(), torch.ones(1, 1), dtype)
    assert_equal_or_both_nan(w, golden_values(golden_fp8).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "factor", [2.0**-149, 2.0**-126, 2.0**-118, 0.3, 1e30, 2.0**120, 0.0, -1.5, NAN, INF, -INF]
)
def test_multiplies_once_in_float32_and_rounds_once(run, golden_fp8, factor, dtype):
    """Products below 2^-126 and beyond 2^128 included. The exact product of 4 and 24 bits is in float64."""
    expected = (golden_values(golden_fp8).double() * torch.tensor(factor).double()).float().to(dtype)
    w = dequantize(run, every_code(), torch.full((1, 1), factor), dtype)
    assert_equal_or_both_nan(w, expected)


def test_every_e8m0_scale_factor_means_its_golden_power_of_two(run, golden_fp8):
    """One block of one row for each of the 256 codes; 255 is NaN."""
    codes = torch.arange(256, dtype=torch.uint8).view(1, 256).view(E8M0)
    bits = torch.tensor([int(b, 16) for b in golden_fp8["ue8m0_codes"]], dtype=torch.int64)
    values = bits.to(torch.int32).view(FP32)
    q = torch.ones(1, 256 * BLOCK).to(E4M3)
    w = dequantize(run, q, codes)
    assert_equal_or_both_nan(w.view(256, BLOCK), values[:, None].expand(256, BLOCK))


def test_scale_factors_have_the_same_meaning_in_every_dtype(run):
    inputs = run.inputs(N=200, K=300, sf_dtype=E8M0)
    expected = dequantize(run, inputs["q"], inputs["sf"])
    for dtype in (FP32, BF16):
        assert testing.same_bits(dequantize(run, inputs["q"], inputs["sf"].to(dtype)), expected), dtype


def test_each_block_uses_its_own_scale_factor(run):
    sf = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    w = dequantize(run, torch.ones(130, 260).to(E4M3), sf)
    for n in (0, 127, 128, 129):
        for k in (0, 127, 128, 255, 256, 259):
            assert w[n, k] == sf[n // BLOCK, k // BLOCK], (n, k)


@pytest.mark.parametrize("ue8m0", [False, True])
def test_undoes_the_cast_within_its_bound(run, make_runner, ue8m0):
    cast = make_runner("per_block_quant_fp8", f"{run.backend}-{run.device}")
    w = torch.randn(200, 300, generator=torch.Generator().manual_seed(5)) * 0.02
    q, sf = cast({"w": w.to(run.device), "ue8m0": ue8m0})
    wide = sf.cpu().double().repeat_interleave(BLOCK, 0)[:200].repeat_interleave(BLOCK, 1)[:, :300]
    # The bound of the cast, and one float32 rounding of the product.
    error = 2.0**-4 * w.double().abs() + 2.0**-10 * wide + 2.0**-24 * 448 * wide
    testing.assert_within(dequantize(run, q, sf), w.double(), error)


def test_experts_are_expanded_one_by_one_with_any_leading_strides(run):
    inputs = run.inputs(N=130, K=140, num_experts=6)
    q, sf = inputs["q"], inputs["sf"]
    w = dequantize(run, q, sf)
    for e in range(6):
        assert testing.same_bits(w[e], dequantize(run, q[e], sf[e]))
    grid = dequantize(run, q.view(2, 3, 130, 140).transpose(0, 1), sf.view(2, 3, 2, 2).transpose(0, 1))
    assert testing.same_bits(grid, w.view(2, 3, 130, 140).transpose(0, 1))
    assert testing.same_bits(dequantize(run, q[::2], sf[::2]), w[::2])


def test_extents_may_be_empty(run):
    for shape in ((0, 5), (3, 0), (0, 130, 130), (2, 0, 128)):
        sf = torch.zeros(*shape[:-2], -(-shape[-2] // BLOCK), -(-shape[-1] // BLOCK))
        assert dequantize(run, torch.zeros(shape).to(E4M3), sf).shape == shape
