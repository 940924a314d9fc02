"""How many programs the grouped Triton kernels get."""

import itertools

import pytest

pytest.importorskip("triton")
from moela.kernels import _groups

MANY = 10**6  # multiprocessors


def tiles_of(counts: tuple[int, ...], block_m: int) -> int:
    return sum(-(-count // block_m) for count in counts)


@pytest.mark.parametrize("num_experts", [1, 2, 3])
@pytest.mark.parametrize("block_m", [1, 3, 4])
def test_there_is_a_program_for_every_tile_that_a_routing_can_have_and_none_more(num_experts, block_m):
    for rows in range(13):
        splits = itertools.product(range(rows + 1), repeat=num_experts)
        most = max(tiles_of(counts, block_m) for counts in splits if sum(counts) == rows)
        assert _groups.num_programs(rows, num_experts, block_m, 5, MANY) == 5 * most


def test_there_are_no_more_programs_than_run_at_once():
    assert _groups.num_programs(10**6, 256, 64, 32, multiprocessors=132) == 264
