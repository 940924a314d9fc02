"""The plan of the grouped FP8 GEMMs on Hopper, for the experts of every model."""

import pytest
from moela.shapes import MODELS

_plan = pytest.importorskip("moela._plan", reason="moela._plan was not built for this Python")
TOKENS = (1, 8, 64, 256, 1024, 8192)
LAYERS = [
    (m.num_experts, m.topk, s.N, s.K)
    for m in MODELS.values()
    for name, s in m.linear_layers().items()
    if name in ("expert_gate_up", "expert_down")
]
plan = _plan.plan_grouped_fp8_gemm_sm90


def plans(E: int, topk: int, N: int, K: int, **options):
    """(rows per expert, plan) of contiguous and masked calls, the latter with experts on eight devices."""
    for tokens in TOKENS:
        yield tokens * topk / E, plan(tokens * topk, N, K, E, **options)
        yield tokens, plan(tokens, N, K, E // 8, is_masked=True, **options)


@pytest.mark.parametrize("layer", LAYERS)
def test_the_grid_fits_the_machine_and_is_whole_clusters(layer):
    for num_sms in (78, 132):
        for _, p in plans(*layer, num_sms=num_sms):
            assert 0 < p.grid <= num_sms
            assert p.grid % p.cluster == 0


@pytest.mark.parametrize("layer", LAYERS)
def test_the_sum_is_split_as_that_of_fp8_gemm(layer):
    _, _, N, K = layer
    for num_sms in (78, 132):
        for _, p in plans(*layer, num_sms=num_sms):
            assert p.splits == _plan.gemm_sm90_splits(N, K)
            assert p.tile.splits == (p.splits > 1)


@pytest.mark.parametrize("layer", LAYERS)
def test_few_rows_per_expert_swap_the_operands_and_many_do_not(layer):
    """Where the sum is split, a cluster may wait longer for the reduction of each tile than for weights."""
    for rows, p in plans(*layer):
        if rows <= 4 and p.splits == 1:
            assert p.tile.swaps, p
            assert p.tile.block_right == 16, p
        if rows >= 200:
            assert not p.tile.swaps, p


@pytest.mark.parametrize("layer", LAYERS)
def test_the_expected_time_is_never_below_that_of_the_memory(layer):
    E, topk, N, K = layer
    for tokens in TOKENS:
        weights = min(E, tokens * topk) * N * K
        assert plan(tokens * topk, N, K, E).microseconds >= weights / 3.35e12 * 1e6


def test_a_grid_is_no_larger_than_the_tiles_that_there_can_be():
    """One row, or 20 experts with a row each, of 128 weights: a block for each tile of 64 weights."""
    assert plan(1, 128, 512, 256).grid == 2
    assert plan(20, 128, 512, 256).grid == 40
    assert plan(1, 128, 512, 3, is_masked=True).grid == 6


def test_prints_what_will_run():
    assert repr(plan(64, 4096, 7168, 256)) == "<swapped 64 x 16, cluster 1, 16 stages, on 132 blocks>"
