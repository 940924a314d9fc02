"""grouped_gemm_wgrad: sums over groups of any size, and over no row of another group."""

import pytest
import torch
from groups import SIZES, assert_right
from moela import testing

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
FLOATS = (BF16, FP16, FP32)


@pytest.mark.parametrize("a_dtype", FLOATS, ids=str)
def test_groups_may_have_any_size(run, a_dtype):
    assert_right(run, run.inputs(M=sum(SIZES), N=40, K=24, E=len(SIZES), counts=SIZES, a_dtype=a_dtype))


@pytest.mark.parametrize(("N", "K"), [(1, 1), (1, 130), (130, 1), (129, 127)])
def test_any_n_and_k(run, N, K):
    assert_right(run, run.inputs(M=9, N=N, K=K, E=3))


@pytest.mark.parametrize("counts", [(0, 0, 7), (7, 0, 0), (0, 7, 0), (0, 0, 0)], ids=str)
def test_an_expert_without_rows_gets_zeros(run, counts):
    inputs = run.inputs(M=7, N=24, K=16, E=3, counts=counts)
    got = assert_right(run, inputs)
    for expert, count in enumerate(counts):
        assert (got[expert] == 0).all() == (count == 0)


def test_without_experts_the_result_is_empty(run):
    inputs = run.inputs(M=5, N=8, K=24, E=1)
    assert run(inputs | {"expert_offsets": inputs["expert_offsets"][:1]})[0].shape == (0, 8, 24)


def test_many_tiny_groups(run):
    """Where a kernel changes from one group to the next with loads of the last one still under way."""
    counts = [(0, 1, 3, 2, 0, 1)[e % 6] for e in range(48)]
    assert_right(run, run.inputs(M=sum(counts), N=24, K=16, E=48, counts=counts))


@pytest.mark.parametrize("a_dtype", FLOATS, ids=str)
def test_rows_outside_a_group_do_not_matter_whatever_they_hold(run, a_dtype):
    """0 * NaN would be NaN: rows behind a group's end must not be multiplied at all."""
    counts, first = (5, 0, 17), 3
    inputs = run.inputs(M=40, N=24, K=16, E=3, counts=counts, first=first, a_dtype=a_dtype)
    expected = assert_right(run, inputs)
    for value in (float("nan"), float("inf")):
        spoiled = {name: inputs[name].clone() for name in ("grad", "a")}
        for t in spoiled.values():
            t[:3], t[25:] = value, value
        assert testing.same_bits(run(inputs | spoiled)[0], expected)
        for t in spoiled.values():  # the next group's rows too
            t[8:25] = value
        assert testing.same_bits(run(inputs | spoiled)[0][:2], expected[:2])


def test_groups_of_one_row_are_outer_products(run):
    """Exact: one product an element."""
    inputs = run.inputs(M=4, N=24, K=16, E=4, counts=(1, 1, 1, 1), a_dtype=FP32)
    expected = inputs["grad"][:, :, None] * inputs["a"][:, None, :]
    assert torch.equal(run(inputs)[0], expected)


def test_agrees_with_grouped_mm_of_torch(run):
    inputs = run.inputs(M=40, N=24, K=72, E=4, counts=(8, 0, 16, 16), a_dtype=FP32)
    offs = inputs["expert_offsets"][1:]
    theirs = torch.nn.functional.grouped_mm(inputs["grad"].T, inputs["a"], offs=offs)
    [(_, error)] = run.spec.bound(inputs, run.accum(inputs))
    testing.assert_within(run(inputs)[0], theirs.double(), 2 * error, "beside torch")
