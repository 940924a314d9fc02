"""grouped_fp8_gemm_masked: counts on the device decide which rows are read and written."""

from typing import Any

import pytest
import torch
from groups import assert_right, nan_like
from moela import testing
from moela.ops import SPECS

BF16, FP32, E4M3 = torch.bfloat16, torch.float32, torch.float8_e4m3fn
COUNTS = (0, 1, 63, 64, 65, 127, 129, 130)  # of 130 rows: around the row tiles that kernels have, and all


def spoil_what_does_not_count(inputs: dict[str, Any]) -> dict[str, Any]:
    """NaN in a and sf_a from each count on, and in the weights of experts without rows."""
    spoiled = {k: inputs[k].clone() for k in ("a", "sf_a", "b", "sf_b") if inputs[k] is not None}
    for e, count in enumerate(inputs["expert_counts"].tolist()):
        for name in {"a", "sf_a"} & spoiled.keys():
            spoiled[name][e, count:] = nan_like(spoiled[name][e, count:])
        for name in ("b", "sf_b") if count == 0 else ():
            spoiled[name][e] = nan_like(spoiled[name][e])
    return inputs | spoiled


@pytest.mark.parametrize("a_dtype", [E4M3, BF16], ids=str)
def test_counts_may_be_anything_up_to_all_rows(run, a_dtype):
    assert_right(run, run.inputs(M=130, N=40, K=136, E=len(COUNTS), counts=COUNTS, a_dtype=a_dtype))


@pytest.mark.parametrize("counts", [(0, 0, 7), (7, 0, 0), (0, 0, 0)], ids=str)
def test_one_expert_may_have_all_rows_and_all_may_have_none(run, counts):
    got = assert_right(run, run.inputs(M=7, N=40, K=136, counts=counts, out_dtype=FP32))
    assert (got != 0).any() == (sum(counts) > 0)


def test_without_experts_the_result_is_empty(run):
    inputs = run.inputs(M=5, N=8, K=136, E=1)
    none = {name: inputs[name][:0] for name in ("a", "sf_a", "b", "sf_b", "expert_counts")}
    assert run(inputs | none)[0].shape == (0, 5, 8)


@pytest.mark.parametrize("a_dtype", [E4M3, BF16, FP32], ids=str)
def test_every_expert_has_the_bits_of_fp8_gemm(run, make_runner, a_dtype):
    inputs = run.inputs(M=67, N=70, K=300, counts=(66, 0, 3), a_dtype=a_dtype, out_dtype=FP32)
    one, (got,) = make_runner("fp8_gemm", f"{run.backend}-{run.device}"), run(inputs)
    for e, count in enumerate(inputs["expert_counts"].tolist()):
        args = {"a": inputs["a"][e, :count], "sf_a": None, "b": inputs["b"][e], "sf_b": inputs["sf_b"][e]}
        if inputs["sf_a"] is not None:
            args["sf_a"] = inputs["sf_a"][e, :count]
        assert testing.same_bits(got[e, :count], one(args | {"out_dtype": FP32})[0]), e


@pytest.mark.parametrize("a_dtype", [E4M3, BF16], ids=str)
def test_what_does_not_count_does_not_matter(run, a_dtype):
    inputs = run.inputs(M=20, N=70, K=200, counts=(5, 0, 19), a_dtype=a_dtype, out_dtype=FP32)
    assert testing.same_bits(run(spoil_what_does_not_count(inputs))[0], run(inputs)[0])


@pytest.mark.parametrize("M", [1, 3, 17, 63, 66, 130])
def test_the_last_tile_of_an_expert_does_not_reach_into_the_next(run, M):
    """Whether a tile ends behind the count or behind the last row: all beside the rows that count stays."""
    counts = (max(M - 1, 0), M, 0, M // 2)
    inputs = run.inputs(M=M, N=33, K=72, E=4, counts=counts)
    big = torch.full((6, M + 2, 40), -7, dtype=BF16, device=run.device)
    run.out(inputs, {"d": big[1:5, 1 : M + 1, 3:36]})
    (expected,) = run(inputs)
    for e, count in enumerate(counts):
        rows = big[1 + e, 1 : count + 1, 3:36]
        assert testing.same_bits(rows, expected[e, :count]), e
        rows.fill_(-7)
    assert (big == -7).all()


def test_the_strides_of_experts_are_free(run):
    """Experts as every second matrix, rows and scale factors with experts innermost."""
    inputs = run.inputs(M=9, N=40, K=200, counts=(9, 0, 4))
    views = {}
    for name in ("a", "sf_a", "b", "sf_b"):
        doubled = inputs[name].repeat_interleave(2, 0)
        doubled[::2] = nan_like(doubled[::2])
        views[name] = doubled[1::2]
    experts_beside = {
        name: inputs[name].transpose(0, 1).contiguous().transpose(0, 1) for name in ("a", "sf_a")
    }
    (expected,) = run(inputs)
    assert testing.same_bits(run(inputs | views)[0], expected)
    assert testing.same_bits(run(inputs | experts_beside)[0], expected)


@pytest.mark.parametrize("name", ["fp8_gemm", "grouped_fp8_gemm", "grouped_fp8_gemm_masked"])
def test_what_the_cuda_kernels_do_not_take_is_known_before_they_are_called(name):
    """Not aligned rows, no columns, other activations: they go to Triton, or are an error if asked for."""

    def limits(M=4, N=8, K=32, **kind) -> str | None:
        inputs = SPECS[name].make_inputs(M=M, N=N, K=K, **kind)
        return SPECS[name].cuda_limits(**inputs)

    assert limits() is None
    assert "bfloat16" in limits(a_dtype=BF16)
    assert limits(K=0) == "K is 0"
    assert "those of a do not" in limits(K=40)
