"""grouped_fp8_gemm: groups of any size, each with the bits of fp8_gemm, and nothing outside them."""

from typing import Any

import moela
import pytest
import torch
from groups import SIZES, assert_right, nan_like
from moela import testing
from torch import Tensor

BF16, FP32, E4M3 = torch.bfloat16, torch.float32, torch.float8_e4m3fn
NAN = float("nan")


def in_fp8_gemm(run: Any, make_runner: Any, inputs: dict[str, Any], expert: int, rows: slice) -> Tensor:
    args = {name: inputs[name][rows] for name in ("a", "sf_a") if inputs[name] is not None}
    args |= {name: inputs[name][expert] for name in ("b", "sf_b")}
    one = make_runner("fp8_gemm", f"{run.backend}-{run.device}")
    return one({"sf_a": None} | args | {"out_dtype": inputs["out_dtype"]})[0]


@pytest.mark.parametrize("a_dtype", [E4M3, BF16], ids=str)
def test_groups_may_have_any_size(run, a_dtype):
    M, E = sum(SIZES), len(SIZES)
    assert_right(run, run.inputs(M=M, N=40, K=136, E=E, counts=SIZES, a_dtype=a_dtype))


@pytest.mark.parametrize("counts", [(0, 0, 7), (7, 0, 0), (0, 7, 0), (0, 0, 0)], ids=str)
def test_one_expert_may_have_all_rows_and_all_may_have_none(run, counts):
    got = assert_right(run, run.inputs(M=7, N=40, K=136, E=3, counts=counts, out_dtype=FP32))
    assert (got != 0).any() == (sum(counts) > 0)


def test_without_experts_every_row_is_zero(run):
    inputs = run.inputs(M=5, N=8, K=136, E=1)
    none = {name: inputs[name][:0] for name in ("b", "sf_b")} | {
        "expert_offsets": inputs["expert_offsets"][:1]
    }
    (got,) = run(inputs | none)
    assert got.shape == (5, 8)
    assert (got == 0).all()


def test_without_columns_of_k_every_row_is_zero(run):
    (got,) = run(run.inputs(M=5, N=8, K=0, E=2))
    assert (got == 0).all()


@pytest.mark.parametrize("a_dtype", [E4M3, BF16, FP32], ids=str)
def test_with_one_expert_it_has_the_bits_of_fp8_gemm(run, make_runner, a_dtype):
    for M in (1, 9, 70):
        inputs = run.inputs(M=M, N=70, K=300, E=1, a_dtype=a_dtype, out_dtype=FP32)
        expected = in_fp8_gemm(run, make_runner, inputs, 0, slice(None))
        assert testing.same_bits(run(inputs)[0], expected), M


@pytest.mark.parametrize("a_dtype", [E4M3, BF16], ids=str)
def test_every_group_has_the_bits_of_fp8_gemm(run, make_runner, a_dtype):
    counts, first = (3, 0, 66, 1), 2
    inputs = run.inputs(M=80, N=70, K=300, counts=counts, first=first, a_dtype=a_dtype, out_dtype=FP32)
    (got,) = run(inputs)
    for expert, count in enumerate(counts):
        rows = slice(first, first + count)
        assert testing.same_bits(got[rows], in_fp8_gemm(run, make_runner, inputs, expert, rows)), expert
        first += count


def test_what_is_in_no_group_does_not_matter(run):
    """NaN in rows outside every group, in their scale factors, and in weights of experts without rows."""
    inputs = run.inputs(M=40, N=70, K=200, E=4, counts=(5, 0, 17, 0), first=3, out_dtype=FP32)
    expected = assert_right(run, inputs)
    spoiled = {name: inputs[name].clone() for name in ("a", "sf_a", "b", "sf_b")}
    for name in ("a", "sf_a"):
        spoiled[name][:3], spoiled[name][25:] = nan_like(spoiled[name][:3]), nan_like(spoiled[name][25:])
    for name in ("b", "sf_b"):
        spoiled[name][1::2] = nan_like(spoiled[name][1::2])
    assert testing.same_bits(run(inputs | spoiled)[0], expected)


def test_a_group_does_not_depend_on_what_the_others_hold(run):
    inputs = run.inputs(M=12, N=70, K=200, E=3, counts=(4, 3, 5), a_dtype=BF16, out_dtype=FP32)
    (expected,) = run(inputs)
    spoiled = {"a": inputs["a"].clone(), "b": inputs["b"].clone()}
    spoiled["a"][4:7], spoiled["b"][1] = NAN, nan_like(inputs["b"][1])
    (got,) = run(inputs | spoiled)
    keep = [0, 1, 2, 3, 7, 8, 9, 10, 11]
    assert testing.same_bits(got[keep], expected[keep])
    assert got[4:7].isnan().all()


@pytest.mark.parametrize("a_dtype", [E4M3, FP32], ids=str)
def test_writes_no_row_outside_the_groups_and_nothing_beside_a_strided_d(run, a_dtype):
    counts, first = (5, 0, 65, 1), 3
    for out_dtype in (BF16, FP32):
        dims = {"M": 80, "N": 33, "K": 72, "counts": counts, "first": first, "a_dtype": a_dtype}
        inputs = run.inputs(**dims, out_dtype=out_dtype)
        big = torch.full((82, 40), -7, dtype=out_dtype, device=run.device)
        run.out(inputs, {"d": big[1:81, 3:36]})
        rows = slice(1 + first, 1 + first + sum(counts))
        assert testing.same_bits(big[rows, 3:36], run(inputs)[0][first : first + sum(counts)])
        big[rows, 3:36] = -7
        assert (big == -7).all()


def test_many_experts_with_few_rows(run):
    """As many as Kimi-K2 has, most without rows."""
    counts = [e % 3 if e % 16 == 5 else 0 for e in range(384)]
    assert_right(run, run.inputs(M=sum(counts), N=8, K=24, E=384, counts=counts))


def test_scale_factors_have_the_same_meaning_in_every_dtype_and_layout(run):
    inputs = run.inputs(M=9, N=300, K=300, E=3, sf_dtype=torch.float8_e8m0fnu)
    (expected,) = run(inputs)
    for dtype in (FP32, BF16):
        sf_b = inputs["sf_b"].to(dtype)
        innermost_expert = sf_b.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        for sf in (sf_b, innermost_expert):
            assert testing.same_bits(run(inputs | {"sf_b": sf})[0], expected), dtype


def test_experts_may_be_slices_of_a_larger_weight(run):
    """gate and up of one checkpoint tensor: the experts lie two weights apart."""
    inputs = run.inputs(M=9, N=16, K=128, E=3)
    both = torch.cat([nan_like(inputs["b"]), inputs["b"]], 1)  # [E, 2 N, K]
    assert testing.same_bits(run(inputs | {"b": both[:, 16:]})[0], run(inputs)[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_asked_for_the_offsets_under_debug_only(make_runner, monkeypatch):
    run = make_runner("grouped_fp8_gemm", "reference-cuda")
    inputs = run.inputs(M=4, N=8, K=128, E=1)
    bad = inputs | {"expert_offsets": inputs["expert_offsets"] + 1}
    monkeypatch.setenv("MOELA_DEBUG", "0")
    run.spec.check(**bad)
    monkeypatch.setenv("MOELA_DEBUG", "1")
    with pytest.raises(ValueError, match=r"got 5 at the end"):
        run.spec.check(**bad)


# --- autograd --------------------------------------------------------------------------------------------


def test_the_derivative_by_a_is_that_of_each_expert(run):
    inputs = run.inputs(M=9, N=72, K=136, E=3, counts=(4, 0, 3), first=1, a_dtype=torch.bfloat16)
    a = inputs["a"].requires_grad_()
    (d,) = run(inputs)
    grad = torch.randn(d.shape, generator=torch.Generator().manual_seed(6)).to(d)
    d.backward(grad)
    assert (a.grad[[0, 8]] == 0).all()  # rows of no expert
    for expert, rows in ((0, slice(1, 5)), (2, slice(5, 8))):
        w = moela.per_block_dequant_fp8(inputs["b"][expert], inputs["sf_b"][expert], torch.bfloat16).double()
        exact, magnitude = grad[rows].double() @ w, grad[rows].double().abs() @ w.abs()
        assert ((a.grad[rows].double() - exact).abs() <= 2.0**-8 * exact.abs() + 2.0**-20 * magnitude).all()
