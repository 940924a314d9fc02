"""The plan of fp8_gemm on Hopper: every shape of every model is covered, by a tile that suits it."""

import pytest
from moela.shapes import MODELS

_plan = pytest.importorskip("moela._plan", reason="moela._plan was not built for this Python")
TOKENS = (1, 2, 16, 17, 63, 64, 65, 128, 200, 256, 1000, 4096, 8192)
SHAPES = sorted({(s.N, s.K) for m in MODELS.values() for s in m.linear_layers().values()})
plan = _plan.plan_fp8_gemm_sm90


@pytest.mark.parametrize("M", TOKENS)
def test_tiles_cover_the_output_and_no_row_of_tiles_is_empty(M):
    for N, K in SHAPES:
        p = plan(M, N, K)
        left, right = (N, M) if p.tile.swaps else (M, N)
        per_cluster = p.tile.block_left * p.tile.cluster
        assert p.tiles_left * p.tile.block_left >= left > p.tiles_left * p.tile.block_left - per_cluster
        assert p.tiles_right * p.tile.block_right >= right > (p.tiles_right - 1) * p.tile.block_right


@pytest.mark.parametrize("M", TOKENS)
def test_the_grid_fits_the_machine_and_is_whole_clusters(M):
    for N, K in SHAPES:
        p = plan(M, N, K)
        assert 0 < p.grid <= 132
        assert p.grid % p.tile.cluster == 0
        assert p.grid <= p.tiles_left * p.tiles_right


@pytest.mark.parametrize(("N", "K"), SHAPES)
def test_few_tokens_swap_the_operands_and_many_do_not(N, K):
    assert plan(1, N, K).tile.swaps
    assert plan(1, N, K).tile.block_right == 16
    assert not plan(8192, N, K).tile.swaps


@pytest.mark.parametrize(("N", "K"), SHAPES)
def test_the_expected_time_is_never_below_that_of_the_memory_and_grows_with_the_tokens(N, K):
    times = [plan(M, N, K).microseconds for M in TOKENS]
    assert all(t >= N * K / 3.35e12 * 1e6 for t in times)
    assert times == sorted(times)


def test_many_tokens_share_weights_by_multicast():
    assert plan(4096, 7168, 2048).tile.cluster == 2


def test_prints_what_will_run():
    assert repr(plan(1, 4096, 7168)) == "<swapped 64 x 16, cluster 1, 16 stages, 64 x 1 tiles on 64 blocks>"
