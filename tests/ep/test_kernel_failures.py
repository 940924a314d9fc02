"""What goes wrong where kernels exchange rows: known late, to every rank, and the end of the buffer."""

import threading
import time
from unittest import mock

import layer
import moela
import pytest
import torch
from moela.ep import EpBuffer, EpPeerLost, EpTimeout, run_local
from moela.ep.device import Fault, status_word
from moela.ep.rendezvous import Member
from moela.ep.transports import TRANSPORTS, reasons_against

pytestmark = pytest.mark.usefixtures("kernels")
BROKEN = "this EpBuffer is broken: close it and build another"


def exchange(buffer: EpBuffer, args, **others) -> None:
    """A dispatch, and whatever its kernels have to say."""
    with torch.no_grad():
        moela.ep_dispatch(*args, group=buffer.name, **others)
        buffer.check()


def expect_broken(buffer: EpBuffer, args, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=BROKEN):
        exchange(buffer, args)


def inputs(rank: int):
    return [t.detach() for t in layer.inputs(rank)[:3]]


def test_a_wrong_argument_of_one_rank_reaches_all_with_its_reason():
    def on_rank(group):
        with EpBuffer(group, **layer.SETTINGS) as buffer:
            x, ids, weights = args = inputs(buffer.rank)
            exchange(buffer, args)
            words = "ep_dispatch: topk_ids: expected int32 or int64, got float32"
            bad = (x, ids.float(), weights) if buffer.rank == 1 else args
            says = words if buffer.rank == 1 else f"ep: rank 1 gave up in epoch 2: {words}"
            with pytest.raises(ValueError, match=f"^{says}$"):
                exchange(buffer, bad)
            expect_broken(buffer, args, ValueError)
        with EpBuffer(group, **layer.SETTINGS) as buffer, torch.no_grad():
            assert torch.equal(layer.spread(*args, buffer.name, "compact"), layer.dense(*args))

    run_local(3, on_rank)


@pytest.mark.parametrize("layout", ["compact", "expert", "masked"])
def test_a_capacity_exceeded_is_raised_there_and_reaches_the_others_in_their_next_exchange(layout):
    def on_rank(group):
        with EpBuffer(group, **layer.SETTINGS) as buffer:
            args = inputs(buffer.rank)
            if buffer.rank == 0:
                with pytest.raises(ValueError, match="ep: epoch 1: expected a capacity for what came"):
                    exchange(buffer, args, layout=layout, capacity=1)
                return
            exchange(buffer, args, layout=layout)
            with pytest.raises(
                ValueError, match=r"^ep: rank 0 gave up in epoch 2: ep: epoch 1: expected a cap"
            ):
                exchange(buffer, args, layout=layout)

    run_local(2, on_rank)


def test_ranks_that_dispatch_different_dtypes_are_told():
    def on_rank(group):
        with EpBuffer(group, **layer.SETTINGS) as buffer:
            x, *others = inputs(buffer.rank)
            other = 1 - buffer.rank
            words = (
                f"ep: epoch 1: ranks disagree: expected the same exchange on all, got another on rank {other}"
            )
            with pytest.raises(ValueError, match=words):
                exchange(buffer, (x.half() if buffer.rank else x.bfloat16(), *others))

    run_local(2, on_rank)


def test_a_rank_that_is_late_is_named_and_a_new_buffer_works():
    has_given_up = threading.Event()

    def on_rank(group):
        args = inputs(group.index)
        with EpBuffer(group, **layer.SETTINGS | {"deadline": 1.0}) as buffer:
            exchange(buffer, args)
            if buffer.rank == 1:
                assert has_given_up.wait(60)
            else:
                start, leave = time.monotonic(), buffer.exchange._leave
                with (
                    mock.patch.object(buffer.exchange, "_leave", wraps=leave) as left,
                    pytest.raises(EpTimeout) as error,
                ):
                    exchange(buffer, args)
                assert (error.value.ranks, error.value.epoch) == ([1], 2)
                assert time.monotonic() - start > 0.9
                assert left.call_args.kwargs == {"deadline_ns": 0}  # waiting for it once is enough
                expect_broken(buffer, args, EpTimeout)
                has_given_up.set()
        with EpBuffer(group, **layer.SETTINGS) as buffer, torch.no_grad():
            assert torch.equal(layer.spread(*args, buffer.name, "compact"), layer.dense(*args))

    run_local(2, on_rank)


def test_who_is_told_by_a_rank_that_waited_in_vain_names_the_one_that_was_late():
    has_given_up = threading.Event()

    def on_rank(group):
        args = inputs(group.index)
        with EpBuffer(group, **layer.SETTINGS | {"deadline": 1.0}) as buffer:
            exchange(buffer, args)
            if buffer.rank == 0:
                moela.ep_dispatch_send(*args, group=buffer.name)
            if buffer.rank == 2:
                with pytest.raises(EpTimeout, match=r"rank 1: it sent nothing within 1 s"):
                    exchange(buffer, args)
                has_given_up.set()
            assert has_given_up.wait(60)
            if buffer.rank == 0:  # as if it were an epoch further, and the last that it knows is this
                buffer.exchange._status.fill_(status_word(Fault.ABORTED, 2, 3))
                with pytest.raises(EpTimeout, match=r"epoch 3: .* rank 1: it sent nothing within 1 s"):
                    buffer.check()

    run_local(3, on_rank)


@pytest.mark.parametrize("how", ["closes", "ends with an error"])
def test_a_rank_that_is_gone_is_lost_at_once(how):
    told = []

    def on_rank(group):
        with EpBuffer(group, **layer.SETTINGS) as buffer:
            args = inputs(buffer.rank)
            exchange(buffer, args)
            if buffer.rank == 1 and how == "closes":
                return
            if buffer.rank == 1:
                raise ZeroDivisionError
            start = time.monotonic()
            with pytest.raises(EpPeerLost) as error:
                exchange(buffer, args)
            assert time.monotonic() - start < 15  # the deadline is 20
            told.append((error.value.ranks, error.value.epoch))

    if how == "closes":
        run_local(3, on_rank)
    else:
        with pytest.raises(ZeroDivisionError):
            run_local(3, on_rank)
    assert told == [([1], 2)] * 2


def test_a_with_ends_with_what_was_not_raised_yet():
    def on_rank(group):
        with pytest.raises(ValueError, match="ep: epoch 1: expected a capacity"):  # noqa: SIM117
            with EpBuffer(group, **layer.SETTINGS) as buffer, torch.no_grad():
                moela.ep_dispatch(*inputs(0), group=buffer.name, capacity=1)

    run_local(1, on_rank)


def test_more_columns_than_a_kernel_takes_are_refused():
    def on_rank(group):
        with EpBuffer(group, **layer.SETTINGS, row_bytes=4096) as buffer:
            args = inputs(0)
            with pytest.raises(ValueError, match="ep_dispatch: extras: expected at most 5 on cpu, got 6"):
                exchange(buffer, args, extras=[args[0]] * 6)

    run_local(1, on_rank)


def test_transports_say_which_device_they_are_for():
    def reasons(device: str, is_local: bool) -> dict:
        members = [Member("host", pid, 0, "host", device) for pid in range(2)]
        return reasons_against([dict.fromkeys(TRANSPORTS)] * 2, members, is_local)

    def usable(*args) -> list[str]:
        return [name for name, why in reasons(*args).items() if why is None]

    assert usable("cpu", False) == ["shm", "collective"]
    assert usable("cuda:0", False) == ["symm", "collective"]
    assert usable("cpu", True) == ["local", "shm", "collective"]
    assert usable("cuda:0", True) == ["local"]
    assert reasons("cuda:0", False)["shm"] == "only rows of CPU tensors can travel, and these are on cuda:0"


def test_a_tensor_on_another_device_is_refused():
    def on_rank(group):
        with EpBuffer(group, **layer.SETTINGS) as buffer:
            args = [t.to("meta") for t in inputs(0)]
            with pytest.raises(ValueError, match="ep_dispatch: x: expected a tensor on cpu, that of the EpB"):
                torch.ops.moela.ep_dispatch(*args, [], "compact", None, buffer.name)

    run_local(1, on_rank)
