"""The plan of the kernels that move rows between ranks on Hopper: as many warps as fit, no block too many."""

import pytest

_plan = pytest.importorskip("moela._plan", reason="moela._plan was not built for this Python")
plan = _plan.plan_ep_rows_sm90
SMEM_BYTES = 227 * 1024


@pytest.mark.parametrize("num_ranks", [1, 8, 72])
@pytest.mark.parametrize("row_bytes", [16, 7456, 14400, 28736, 57408, 114_000])
def test_as_many_warps_as_have_two_rows_each(row_bytes, num_ranks):
    p = plan(row_bytes, 4096, num_ranks=num_ranks)
    assert row_bytes <= p.row_bytes < row_bytes + 128
    assert p.row_bytes % 128 == 0
    assert 1 <= p.warps <= 8
    assert p.smem_bytes <= SMEM_BYTES
    assert p.warps == 8 or p.smem_bytes + 2 * p.row_bytes > SMEM_BYTES


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 4096])
def test_no_block_is_without_rows(rows):
    p = plan(14400, rows, num_blocks=16)
    assert p.grid == max(1, min(16, -(-rows // p.warps)))


def test_rows_that_do_not_fit_twice_are_refused():
    assert plan(115_200, 1).warps == 0


def test_prints_what_will_run():
    assert repr(plan(14400, 4096)) == "<7 warps with two rows of 14464 bytes, on 132 blocks>"
