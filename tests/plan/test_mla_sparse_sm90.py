"""The plan of mla_sparse on Hopper: entries are covered, few tokens are cut into pieces, many are not."""

import pytest

_plan = pytest.importorskip("moela._plan", reason="moela._plan was not built for this Python")
plan = _plan.plan_mla_sparse_sm90
TOKENS = (1, 2, 3, 16, 60, 66, 67, 132, 133, 1000, 8192)


@pytest.mark.parametrize("topk", [0, 1, 64, 65, 500, 2048, 32768])
@pytest.mark.parametrize("H", [1, 16, 64, 65, 128])
def test_heads_and_entries_are_covered_and_no_piece_or_thread_block_is_empty(H, topk):
    blocks = max(1, -(-topk // 64))
    for T in TOKENS:
        for num_sms in (1, 78, 132):
            p = plan(T, H, topk, num_sms=num_sms)
            assert p.tiles * 64 >= H > (p.tiles - 1) * 64
            assert p.pieces * p.piece_blocks >= blocks > (p.pieces - 1) * p.piece_blocks
            assert 0 < p.grid <= min(num_sms, T * p.tiles * p.pieces)


def test_one_token_is_cut_into_pieces_and_as_many_as_fill_the_machine_are_not():
    assert plan(1, 128, 2048).pieces == 16
    assert plan(1, 128, 64).pieces == 1
    for T in (66, 132, 1000):
        assert plan(T, 128, 2048).pieces == 1


@pytest.mark.parametrize("H", [16, 128])
def test_more_tokens_never_have_more_pieces_and_never_take_less_time(H):
    plans = [plan(T, H, 2048) for T in TOKENS]
    assert [p.pieces for p in plans] == sorted((p.pieces for p in plans), reverse=True)
    times = [p.microseconds for p in plans]
    assert times == sorted(times)


def test_prints_what_will_run():
    text = "<2 tiles of heads x 1 pieces of 32 blocks of entries, on 132 thread blocks>"
    assert repr(plan(66, 128, 2048)) == text
