"""What goes wrong on one rank is an error on every rank, in time, and says which rank and when."""

import threading
import time

import layer
import moela
import pytest
import torch
import usable
from moela.ep import EpBuffer, EpPeerLost, EpTimeout

SETTINGS = layer.SETTINGS
pytestmark = pytest.mark.parametrize("transport", [*usable.USABLE.values()])

BAD = {
    "x: expected at most max_tokens=6 rows, got 7": lambda x, ids, w: (
        torch.ones(7, 4), torch.zeros(7, 3, dtype=torch.int32), torch.ones(7, 3)),
    "x: expected hidden=4, got hidden=3": lambda x, ids, w: (x[:, :3], ids, w),
    "topk_ids: expected topk=3, got topk=2": lambda x, ids, w: (x, ids[:, :2], w),
    "topk_ids: expected int32 or int64, got float32": lambda x, ids, w: (x, ids.float(), w),
    "topk_weights: expected float32, got bfloat16": lambda x, ids, w: (x, ids, w.bfloat16()),
    "topk_weights: expected shape [6, 3], got [5, 3]": lambda x, ids, w: (x, ids, w[:5]),
    "x: expected a contiguous last dimension (stride 1), got stride 6": lambda x, ids, w: (
        x.T.contiguous().T, ids, w),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_a_wrong_argument_of_one_rank_reaches_all_and_the_next_exchange_works(transport, message):
    def on_rank(group):
        with EpBuffer(group, **SETTINGS, **usable.over(transport)) as buffer, torch.no_grad():
            args = layer.inputs(buffer.rank)[:3]
            bad = BAD[message](*args) if buffer.rank == 1 else args
            with pytest.raises(ValueError, match=r"^[Ee]p") as error:
                moela.ep_dispatch(*bad, group=buffer.name)
            says = f"ep_dispatch: {message}"
            says = says if buffer.rank == 1 else f"ep: rank 1 gave up in epoch 1: {says}"
            assert str(error.value).startswith(says)
            assert torch.equal(layer.spread(*args, buffer.name, "compact"), layer.dense(*args))

    usable.run_on(transport, 3, on_rank)


def test_a_capacity_too_small_on_one_rank_reaches_the_others_in_their_next_exchange(transport):
    def on_rank(group):
        with EpBuffer(group, **SETTINGS, **usable.over(transport)) as buffer, torch.no_grad():
            args = layer.inputs(buffer.rank)[:3]
            needed = int(moela.ep_dispatch(*args, group=buffer.name).handle.recv_counts.sum())
            message = f"ep_dispatch: capacity: expected at least {needed} for what came, got {needed - 1}"
            if buffer.rank == 0:
                with pytest.raises(ValueError, match=message):
                    moela.ep_dispatch(*args, group=buffer.name, capacity=needed - 1)
            else:
                received = moela.ep_dispatch(*args, group=buffer.name)
                with pytest.raises(ValueError, match="ep: rank 0 gave up in epoch 3: ep_dispatch: capacity"):
                    moela.ep_combine(received.x, received.handle, group=buffer.name)
            assert torch.equal(layer.spread(*args, buffer.name, "compact"), layer.dense(*args))

    usable.run_on(transport, 2, on_rank)


def test_rows_that_are_missing_on_one_rank_are_an_error_on_all_and_the_next_exchange_works(transport):
    def on_rank(group):
        with EpBuffer(group, **SETTINGS, **usable.over(transport)) as buffer, torch.no_grad():
            args = layer.inputs(buffer.rank)[:3]
            came = moela.ep_dispatch(*args, group=buffer.name)
            needed = int(came.handle.recv_counts.sum())
            y = came.x[: needed - 1] if buffer.rank == 1 else came.x
            message = (
                f"ep_combine: y: expected the rows of .* got {needed - 1} rows, where row {needed - 1} is"
            )
            with pytest.raises(
                ValueError, match=message if buffer.rank == 1 else "rank 1 gave up in epoch 2: ep"
            ):
                moela.ep_combine(y, came.handle, group=buffer.name)
            assert torch.equal(layer.spread(*args, buffer.name, "compact"), layer.dense(*args))

    usable.run_on(transport, 2, on_rank)


def test_handles_of_different_dispatches_are_noticed(transport):
    def on_rank(group):
        with EpBuffer(group, **SETTINGS, **usable.over(transport)) as buffer, torch.no_grad():
            x, ids, weights, _ = layer.inputs(buffer.rank)
            every = torch.arange(3).expand(6, 3) * 3  # every token goes to the last rank
            one = moela.ep_dispatch(x, every, weights, group=buffer.name)
            other = moela.ep_dispatch(x[:4], every[:4], weights[:4], group=buffer.name)
            came = other if buffer.rank == 1 else one
            with pytest.raises(
                ValueError, match=r"ep_combine: handle: expected \[.* rows .*, got \[.*; do all"
            ):
                moela.ep_combine(came.x, came.handle, group=buffer.name)
            assert torch.equal(
                layer.spread(x, ids, weights, buffer.name, "compact"), layer.dense(x, ids, weights)
            )

    usable.run_on(transport, 2, on_rank)


@pytest.mark.parametrize("setting", ["num_experts", "hidden", "topk", "max_tokens", "deadline"])
def test_ranks_with_different_settings_are_told_which(transport, setting):
    def on_rank(group):
        settings = SETTINGS | {setting: SETTINGS[setting] + (group.index == 2)}
        with pytest.raises(ValueError, match=r"^[Ee]p") as error:
            EpBuffer(group, **settings, **usable.over(transport))
        return str(error.value)

    message = f"EpBuffer: {setting}: expected the same on all ranks, got {SETTINGS[setting]!r} on rank 0 and"
    for got in usable.run_on(transport, 3, on_rank):
        assert got == f"{message} {SETTINGS[setting] + 1!r} on rank 2"


def test_a_setting_that_makes_no_sense_on_one_rank_is_an_error_on_all(transport):
    def on_rank(group):
        for name, value, says in (
            ("hidden", 0, "expected a positive whole number, got 0"),
            ("hidden", None, "expected a positive whole number, got None"),
            ("max_tokens", 2.5, "expected a positive whole number, got 2.5"),
            ("deadline", -1, "expected a positive number, got -1"),
            ("deadline", "soon", "expected a positive number, got 'soon'"),
            ("device", "abacus", "Expected one of cpu"),
        ):
            settings = SETTINGS | usable.over(transport) | ({name: value} if group.index == 1 else {})
            with pytest.raises(ValueError, match=rf"EpBuffer: {name}: {says}(.|\n)* \(rank 1\)"):
                EpBuffer(group, **settings)

    usable.run_on(transport, 2, on_rank)


def test_ranks_that_dispatch_different_dtypes_are_told(transport):
    def on_rank(group):
        with EpBuffer(group, **SETTINGS, **usable.over(transport)) as buffer, torch.no_grad():
            x, ids, weights, _ = layer.inputs(buffer.rank)
            x = x.half() if buffer.rank == 1 else x.bfloat16()
            with pytest.raises(ValueError, match=r"^[Ee]p") as error:
                moela.ep_dispatch(x, ids, weights, group=buffer.name)
            return str(error.value)

    texts = "got 'ep_dispatch bfloat16[4]' on rank 0 and 'ep_dispatch float16[4]' on rank 1"
    if transport == "hier":  # they meet on the rail of rank 1 first
        texts = "got 'ep_dispatch float16[4]' on rank 1 and 'ep_dispatch bfloat16[4]' on rank 3"
    for words in usable.run_on(transport, 2, on_rank):
        assert words == f"ep: ranks disagree: expected the same exchange on all, {texts}"


def test_a_rank_that_is_late_is_named_and_a_new_buffer_works(transport):
    has_given_up = threading.Event()

    def on_rank(group):
        args = [t.detach() for t in layer.inputs(group.index)[:3]]
        with EpBuffer(group, **SETTINGS | {"deadline": 2.0}, **usable.over(transport)) as buffer:
            layer.spread(*args, buffer.name, "compact")
            if buffer.rank == 1:
                assert has_given_up.wait(60)
            else:
                start = time.monotonic()
                with pytest.raises(EpTimeout) as error:
                    moela.ep_dispatch(*args, group=buffer.name)
                assert (error.value.ranks, error.value.epoch) == ([1], 3)
                assert time.monotonic() - start > 1.9
                with pytest.raises(EpTimeout, match="close it and build another"):
                    moela.ep_dispatch(*args, group=buffer.name)
                has_given_up.set()
        with EpBuffer(group, **SETTINGS, **usable.over(transport)) as buffer:
            assert torch.equal(layer.spread(*args, buffer.name, "compact"), layer.dense(*args))

    usable.run_on(transport, 2, on_rank)


def test_a_rank_that_has_closed_its_buffer_is_lost_at_once(transport):
    def on_rank(group):
        with EpBuffer(group, **SETTINGS, **usable.over(transport)) as buffer:
            args = [t.detach() for t in layer.inputs(buffer.rank)[:3]]
            layer.spread(*args, buffer.name, "compact")
            if buffer.rank == 1:
                return
            start = time.monotonic()
            with pytest.raises(EpPeerLost) as error:
                moela.ep_dispatch(*args, group=buffer.name)
            assert (error.value.ranks, error.value.epoch) == ([1], 3)
            assert time.monotonic() - start < 15  # the deadline is 20

    usable.run_on(transport, 3, on_rank)


def test_a_rank_that_never_builds_its_buffer_is_named(transport):
    def on_rank(group):
        if group.index != 1:
            with pytest.raises(EpTimeout, match="no answer in time from rank 1: it did not build"):
                EpBuffer(group, **SETTINGS | {"deadline": 0.5}, **usable.over(transport))

    usable.run_on(transport, 2, on_rank)


def test_a_name_that_is_not_open_is_an_error(transport):
    def on_rank(group):
        args = [t.detach() for t in layer.inputs(0)[:3]]
        with EpBuffer(group, **SETTINGS, **usable.over(transport)) as buffer:
            received = moela.ep_dispatch(*args, group=buffer.name)
        buffer.close()
        with pytest.raises(ValueError, match="group: expected the name of an open EpBuffer"):
            moela.ep_combine(received.x, received.handle, group=buffer.name)

    usable.run_on(transport, 1, on_rank)


def test_a_handle_of_another_buffer_is_an_error(transport):
    def on_rank(group):
        args = [t.detach() for t in layer.inputs(0)[:3]]
        with (
            EpBuffer(group, **SETTINGS, **usable.over(transport)) as one,
            EpBuffer(group, **SETTINGS | {"max_tokens": 9}, **usable.over(transport)) as other,
        ):
            received = moela.ep_dispatch(*args, group=one.name)
            R = one.num_ranks
            with pytest.raises(
                ValueError, match=rf"ep_combine: positions: expected shape \[{9 * R}, 1\], got \[{6 * R}, 1\]"
            ):
                moela.ep_combine(received.x, received.handle, group=other.name)

    usable.run_on(transport, 1, on_rank)


def test_without_torch_distributed_there_is_a_clear_error(transport):
    with pytest.raises(ValueError, match="EpBuffer: group: expected torch"):
        EpBuffer(None, **SETTINGS, **usable.over(transport))
