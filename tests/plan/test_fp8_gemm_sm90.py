"""The plan of fp8_gemm on Hopper: every shape of every model is covered, by a tile that suits it."""

import pytest
from moela.shapes import MODELS

_plan = pytest.importorskip("moela._plan", reason="moela._plan was not built for this Python")
TOKENS = (1, 2, 16, 17, 63, 64, 65, 128, 200, 256, 1000, 4096, 8192)
SHAPES = sorted({(s.N, s.K) for m in MODELS.values() for s in m.linear_layers().values()})
plan, splits = _plan.plan_fp8_gemm_sm90, _plan.gemm_sm90_splits


@pytest.mark.parametrize("M", TOKENS)
def test_tiles_cover_the_output_and_no_cluster_is_empty(M):
    for N, K in SHAPES:
        p = plan(M, N, K)
        t = p.tile
        left, right = (N, M) if t.swaps else (M, N)
        assert p.tiles_left % t.cluster_left == p.tiles_right % t.cluster_right == 0
        assert p.tiles_left * t.block_left >= left > (p.tiles_left - t.cluster_left) * t.block_left
        assert p.tiles_right * t.block_right >= right > (p.tiles_right - t.cluster_right) * t.block_right


@pytest.mark.parametrize("M", TOKENS)
def test_the_grid_fits_the_machine_and_is_whole_clusters(M):
    for N, K in SHAPES:
        p = plan(M, N, K)
        assert 0 < p.grid <= 132
        assert p.grid % p.cluster == 0
        assert p.cluster == (p.splits if p.tile.swaps and p.tile.splits else p.tile.cluster)
        blocks_per_tile = p.cluster // p.tile.cluster
        assert p.grid <= p.tiles_left * p.tiles_right * blocks_per_tile


@pytest.mark.parametrize(("N", "K"), SHAPES)
def test_the_split_of_the_sum_is_a_function_of_the_weights_shape(N, K):
    """Also on a smaller machine: a row's bits depend on neither its batch nor the device."""
    for num_sms in (78, 132):
        for M in TOKENS:
            p = plan(M, N, K, num_sms=num_sms)
            assert p.splits == splits(N, K)
            assert p.tile.splits == (p.splits > 1)


@pytest.mark.parametrize(("N", "K"), SHAPES)
def test_no_split_is_empty(N, K):
    assert splits(N, K) <= -(-K // 128)


def test_narrow_weights_with_long_rows_are_split():
    assert [splits(N, 7168) for N in (64, 576, 1536, 2112, 4032, 4096, 7168)] == [8, 8, 4, 2, 2, 1, 1]
    assert splits(576, 512) == 1


def test_one_token_reads_a_narrow_weight_with_64_blocks_and_more():
    for N, K in [(576, 7168), (1536, 7168), (2112, 7168)]:
        assert plan(1, N, K).grid >= 64


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


def test_many_tokens_share_weights_and_some_share_tokens_by_multicast():
    assert plan(4096, 7168, 2048).tile.cluster_left == 2
    assert plan(256, 4096, 7168).tile.cluster_right == 2


def test_prints_what_will_run():
    text = "<swapped 64 x 16, cluster 8, 8 splits, 16 stages, 9 x 1 tiles on 72 blocks>"
    assert repr(plan(1, 576, 7168)) == text
    assert repr(plan(1, 4096, 7168)) == "<swapped 64 x 16, cluster 1, 16 stages, 64 x 1 tiles on 64 blocks>"
