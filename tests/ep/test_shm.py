"""Ranks on one host: rows in shared memory, and what survivors are told when a rank is gone."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from forks import Ended, Forks
from moela.ep import EpPeerLost, EpTimeout
from moela.ep.transports.shm import ShmTransport

if ShmTransport.why_not():
    pytest.skip(f"shm: {ShmTransport.why_not()}", allow_module_level=True)


@pytest.fixture(scope="module")
def run_forked() -> Iterator[Callable[..., list[Ended]]]:
    with Forks("shm_ranks") as forks:
        yield forks.run


def succeed(ended: list[Ended]) -> list:
    errors = [e.error or e.exitcode for e in ended if e.error or e.exitcode]
    assert errors == []
    return [e.result for e in ended]


# --- rows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_ranks", "epochs"), [(1, 200), (2, 1000), (4, 500)])
def test_every_row_arrives_in_every_epoch(run_forked, tmp_path, num_ranks, epochs):
    succeed(run_forked(num_ranks, "many_epochs", tmp_path / "store", num_ranks, epochs))


def test_an_epoch_that_one_rank_gives_up_is_an_error_on_all_and_the_next_is_not(run_forked, tmp_path):
    expected = ["too much"]
    assert succeed(run_forked(3, "give_up_in_the_second", tmp_path / "store")) == [expected] * 3


def test_ranks_that_send_different_rows_get_the_same_words(run_forked, tmp_path):
    one, other = succeed(run_forked(2, "send_different_things", tmp_path / "store"))
    assert one == other == (
        "ep: ranks disagree: expected the same row_bytes on all, got 16 on rank 0 and 32 on rank 1"
    )  # fmt: skip


# --- ranks that do not answer ----------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["before sending", "after sending"])
def test_a_rank_that_is_killed_is_named_at_once(run_forked, tmp_path, where):
    ended = run_forked(3, "lose", tmp_path / "store", signal.SIGKILL, where, 30.0)
    assert ended[1].exitcode == -signal.SIGKILL
    for rank in (0, 2):
        assert type(ended[rank].error) is EpPeerLost
        assert ended[rank].error.ranks == [1]
        assert ended[rank].error.epoch in (2, 3, 4)
        assert ended[rank].seconds < 5  # milliseconds on a machine that is not busy


@pytest.mark.parametrize("where", ["before sending", "after sending"])
def test_a_rank_that_is_stopped_is_named_at_the_deadline_and_told_later(run_forked, tmp_path, where):
    ended = run_forked(3, "lose", tmp_path / "store", signal.SIGSTOP, where, 1.0)
    for rank in (0, 2):
        assert type(ended[rank].error) is EpTimeout
        assert ended[rank].error.ranks == [1]
        assert 0.9 < ended[rank].seconds < 10
    assert type(ended[1].error) is EpPeerLost  # the others have left


def test_a_rank_that_is_slow_is_waited_for_until_the_deadline(run_forked, tmp_path):
    succeed(run_forked(2, "be_slow", tmp_path / "patient"))
    ended = run_forked(2, "be_too_slow", tmp_path / "impatient")
    assert type(ended[0].error) is EpTimeout
    assert (ended[0].error.ranks, ended[0].error.epoch) == ([1], 1)
    assert type(ended[1].error) is EpPeerLost


def test_survivors_of_a_loss_build_a_smaller_group(run_forked, tmp_path):
    ended = run_forked(3, "rebuild", tmp_path)
    assert ended[0].exitcode == -signal.SIGKILL
    assert [ended[1].result, ended[2].result] == [2, 2]


def test_what_a_rank_sent_before_it_ended_arrives(run_forked, tmp_path):
    succeed(run_forked(2, "last_words", tmp_path / "store"))


def test_what_a_rank_posted_between_two_looks_and_its_end_counts():
    transport = mock.Mock(_setup=mock.Mock(deadline=1.0), _failure=lambda *_: EpPeerLost([1], 1, "ended"))
    answers = iter([[1], []])  # missing, then not
    ShmTransport._wait(transport, 1, lambda *_: next(answers), 1)
    transport._boxes.leave.assert_not_called()


def test_who_left_because_another_ended_is_not_to_blame():
    transport = mock.Mock(num_ranks=3, rank=0, _has_ended=lambda rank: rank == 2)
    transport._boxes.has_left = lambda rank: rank == 1
    error = ShmTransport._failure(transport, [1], 7, False)
    assert (type(error), error.ranks, error.epoch) == (EpPeerLost, [2], 7)


@pytest.mark.parametrize("shape", [(3, 16), (2, 17)])
def test_rows_that_have_no_place_are_not_written(shape):
    transport = mock.Mock(_setup=mock.Mock(max_tokens=2, row_bytes=16))
    counts = torch.tensor([shape[0]], dtype=torch.int32)
    with pytest.raises(ValueError, match="expected at most 2 rows of 16 bytes to a rank, got"):
        ShmTransport.send(transport, 1, "", [torch.zeros(shape, dtype=torch.uint8)], None, counts)


# --- what it costs ---------------------------------------------------------------------------------------


def test_a_rank_that_waits_leaves_its_core_to_others(run_forked, tmp_path):
    waiting, _ = succeed(run_forked(2, "wait_half_a_second", tmp_path / "store"))
    assert waiting < 0.2


def test_a_rank_that_waits_can_be_interrupted(run_forked, tmp_path):
    succeed(run_forked(2, "be_interrupted", tmp_path / "store"))


def test_a_child_of_a_rank_is_no_rank(run_forked, tmp_path):
    succeed(run_forked(2, "have_a_child", tmp_path / "store"))


def test_nothing_is_left_behind(run_forked, tmp_path):
    succeed(run_forked(2, "leave_nothing", tmp_path / "closed"))
    run_forked(3, "lose", tmp_path / "killed", signal.SIGKILL, "before sending", 30.0)
    assert [path for path in Path("/dev/shm").iterdir() if "moela" in path.name] == []


def test_memory_that_is_not_there_is_an_error_on_every_rank(run_forked, tmp_path):
    maker, other = (ended.error for ended in run_forked(2, "ask_for_too_much", tmp_path / "store"))
    assert "GiB of free memory for 2 ranks of 1099511627776 tokens, got" in str(maker)
    assert str(other) == "rank 0 made no memory"
