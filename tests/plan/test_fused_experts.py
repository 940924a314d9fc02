"""The plan of the CPU fused_experts: tokens in chunks, rows in waves, and the memory that both take."""

import pytest

_plan = pytest.importorskip("moela._plan", reason="moela._plan was not built for this Python")

MAX_SUMS_BYTES = 64 << 20
HIDDEN, INTERMEDIATE = 7168, 2048  # DeepSeek-V3


@pytest.mark.parametrize("hidden", [1, 64, 2880, HIDDEN])
def test_chunks_cover_the_tokens_and_their_sums_stay_within_their_memory(hidden):
    for num_tokens in (1, 16, 2340, 2341, 8192, 100_000):
        plan = _plan.plan_fused_experts(num_tokens, hidden)
        assert (plan.num_chunks - 1) * plan.tokens_per_chunk < num_tokens
        assert plan.num_chunks * plan.tokens_per_chunk >= num_tokens
        assert plan.tokens_per_chunk * hidden * 4 <= MAX_SUMS_BYTES


def test_a_decoding_batch_is_one_chunk():
    assert _plan.plan_fused_experts(256, HIDDEN).num_chunks == 1


def test_sums_that_are_too_large_for_any_chunk_are_computed_token_by_token():
    plan = _plan.plan_fused_experts(3, MAX_SUMS_BYTES)
    assert (plan.num_chunks, plan.tokens_per_chunk) == (3, 1)


def test_no_tokens_and_no_columns_are_no_work():
    assert _plan.plan_fused_experts(0, HIDDEN).num_chunks == 0
    assert _plan.plan_fused_experts(5, 0).num_chunks == 1


def test_one_token_of_many_experts_is_one_wave():
    """Two parallel passes over the weights, however many experts there are."""
    row = _plan.fused_experts_row_bytes(HIDDEN, INTERMEDIATE)
    assert _plan.plan_grouped_gemm([1] * 8, INTERMEDIATE, row, cols=32, dot_rows=16).waves == [0, 8]


def test_a_row_takes_what_is_packed_of_it_and_its_h():
    assert _plan.fused_experts_row_bytes(HIDDEN, INTERMEDIATE) == 4 * (HIDDEN + INTERMEDIATE)
    assert _plan.fused_experts_row_bytes(100, 200) == 4 * (256 + 200)


def test_prints_what_will_run():
    assert repr(_plan.plan_fused_experts(8192, HIDDEN)) == "<4 x 2048 tokens>"
