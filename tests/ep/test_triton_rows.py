"""The Triton kernels of an exchange, in the interpreter: every bit that the definition writes.

Ranks are launches one after another in one process.
"""

import dataclasses

import device_definition
import interpreter
import moela
import pytest
import torch
from device_ranks import Case, Ranks, assert_same, assert_same_state
from moela.ep.device import Fault, Kernels
from torch import Tensor

pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("Triton's interpreter is tested only where there is no GPU", allow_module_level=True)

from moela.kernels import _fp8, ep_combine, ep_dispatch

interpreter.hasten()
pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy, of inf * 0

TRITON = Kernels(
    ep_dispatch.send,
    ep_dispatch.place,
    ep_dispatch.receive,
    ep_combine.combine_send,
    ep_combine.combine_receive,
)
DEFINED = Kernels(*(getattr(device_definition, name) for name in Kernels._fields))
NOW = {"deadline_ns": 0}


@pytest.fixture(autouse=True)
def _three_blocks(monkeypatch):
    target = dataclasses.replace(_fp8.INTERPRETER, multiprocessors=3)
    monkeypatch.setattr(_fp8, "INTERPRETER", target)


def both(case: Case) -> list[Ranks]:
    return [case.ranks(kernels) for kernels in (TRITON, DEFINED)]


CASES = {
    "one rank": {"R": 1, "layout": "expert", "E": 3, "topk": 1},
    "two ranks": {"layout": "masked", "capacity": 8, "dtype": torch.float16, "pad": 16},
    "three ranks": {"R": 3, "E": 2, "layout": "expert", "topk": 2},  # one without experts
    "four ranks": {"R": 4, "E": 7, "max_tokens": 3, "topk": 5, "dtype": torch.float32, "H": 17, "pad": 4},
    "odd widths": {"widths": (7, 0, 1, 24, 6), "pad": 1, "layout": "expert"},
    "odd rows": {"widths": (33,), "pad": 3, "H": 1},
    "one expert": {"routing_case": "one expert", "R": 3, "layout": "masked", "topk": 2, "capacity": 24},
    "a few tokens": {"routing_case": "few", "R": 3, "layout": "compact"},
    "no row": {"routing_case": "nothing", "layout": "masked"},
    "several pieces": {"widths": (20000, 3000), "H": 1500, "max_tokens": 2, "layout": "expert"},
    # 16 terms and more, which another order would sum to something else
    "wide": {
        "routing_case": "uniform",
        "topk": 33,
        "E": 40,
        "max_tokens": 2,
        "layout": "expert",
        "dtype": torch.float32,
    },
}


@pytest.mark.parametrize("name", CASES)
def test_is_the_definition(name):
    case = Case(**CASES[name])
    ranks, defined = both(case)
    assert_same(case.exchange(ranks), case.exchange(defined))
    assert_same_state(ranks, defined)


def test_epochs_follow_each_other_two_at_a_time():
    case = Case()
    ranks, defined = both(case)
    for seed in range(0, 10, 2):
        got, want = [], []
        for of, results in ((ranks, got), (defined, want)):
            for rank in (0, 1, 0, 1):
                case.send(of, rank, seed + of.epochs[rank, 0].item() % 2)
            results += [case.receive(of, rank) for rank in (1, 1, 0, 0)]
        assert_same(got, want)
    assert_same_state(ranks, defined)
    assert ranks.epochs.unique().tolist() == [10]


def test_memory_may_be_larger_than_32_bits_count():
    """The rows of rank 1 in an odd epoch begin after 2.4 GB, of which a page is used."""
    case = Case("uniform", max_row_bytes=2**27, max_tokens=6)
    assert_same(*([case.exchange(ranks)[:1] for ranks in both(case)]))


@pytest.mark.parametrize(("layout", "capacity"), [("compact", 5), ("expert", 4), ("masked", 2)])
def test_too_many_rows_are_reported_and_counted(layout, capacity):
    case = Case("uniform", E=2, topk=2, layout=layout, capacity=capacity)
    ranks, defined = both(case)
    assert_same(case.exchange(ranks), case.exchange(defined))
    assert_same_state(ranks, defined)
    assert ranks.said(0) == (Fault.CAPACITY, 0, 1)


def test_places_that_y_does_not_have_are_none_and_reported():
    case = Case("uniform", layout="expert", E=2, topk=2)
    ranks, defined = both(case)
    results = []
    for of in (ranks, defined):
        for rank in (0, 1):
            case.send(of, rank)
        got = [case.receive(of, rank) for rank in (0, 1)]
        got[1]["out0"] = got[1]["out0"][: got[1]["positions"].max()]  # all but one
        for rank in (0, 1):
            case.combine_send(of, rank, got[rank])
        results.append([case.combine_receive(of, rank) for rank in (0, 1)])
    assert_same(*results)
    assert_same_state(ranks, defined)
    assert [ranks.said(rank) for rank in (0, 1)] == [None, (Fault.CAPACITY, 1, 2)]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"is_abort": True}, Fault.ABORTED),
        ({"kind": 0x1ABCDEF0}, Fault.DISAGREEMENT),
        ({"row_bytes": 80}, Fault.DISAGREEMENT),
        (None, Fault.NOT_ARRIVED),
    ],
    ids=str,
)
def test_a_rank_that_fails_is_named_and_its_rows_are_not_taken(changes, fault):
    case = Case("uniform", R=3, E=3, layout="expert")
    ranks, defined = both(case)
    results = []
    for of in (ranks, defined):
        case.send(of, 0)
        case.send(of, 2)
        if changes is not None:
            case.send(of, 1, **changes)
        results.append([case.receive(of, rank, deadline_ns=10**6) for rank in (0, 2)])
    assert_same(*results)
    assert_same_state(ranks, defined, ranks.memory.rows_at(0, 0))  # not what is behind the columns of a row
    assert [ranks.said(rank) for rank in (0, 2)] == [(fault, 1, 1)] * 2


@pytest.mark.parametrize("is_combine", [False, True])
def test_a_rank_that_gives_nothing_back_is_left_alone_and_the_others_are_told(is_combine):
    case = Case("uniform", R=3, E=3)
    ranks, defined = both(case)
    for of in (ranks, defined):
        for rank in (0, 1, 2, 0, 1, 2):
            case.send(of, rank)
        got = case.receive(of, 0)
        case.receive(of, 2)
        rows = of.bytes[1][of.at[1] + of.memory.rows_at(0, 0) :].clone()
        if is_combine:
            case.combine_send(of, 0, got, **NOW)
        else:
            case.send(of, 0, seed=1, **NOW)
        if of is ranks:  # rank 1 may be reading
            assert torch.equal(of.bytes[1][of.at[1] + of.memory.rows_at(0, 0) :], rows)
    assert ranks.said(0) == (Fault.NOT_RELEASED, 1, 3)
    assert_same_state(ranks, defined, ranks.memory.rows_at(0, 0))  # the definition sends rows, nobody reads
    case.receive(ranks, 2)
    (case.combine_receive if is_combine else case.receive)(ranks, 2, **NOW)
    assert ranks.said(2).epoch == 3


def test_a_rank_that_returns_another_number_of_rows_is_left_out_of_the_sums():
    case = Case("uniform", R=3, E=3, topk=2)
    ranks, defined = both(case)
    results = []
    for of in (ranks, defined):
        for rank in (0, 1, 2):
            case.send(of, rank)
        got = [case.receive(of, rank) for rank in (0, 1, 2)]
        got[1]["recv_counts"][0] -= 1
        for rank in (0, 1, 2):
            case.combine_send(of, rank, got[rank])
        results.append([case.combine_receive(of, rank) for rank in (0, 2)])
    assert_same(*results)
    assert_same_state(ranks, defined)
    assert [ranks.said(rank) for rank in (0, 2)] == [(Fault.DISAGREEMENT, 1, 2), None]


def test_nothing_is_read_on_the_host(monkeypatch):
    """So that a CUDA graph can be captured of an exchange and its plan."""
    case = Case("uniform", layout="masked", capacity=8)
    defined, plans = both(case)[1], [case.plan(rank) for rank in range(case.R)]
    want, ranks = case.exchange(defined), case.ranks(TRITON)

    def plan(rank: int) -> tuple[Tensor, Tensor]:
        _, counts, slots = torch.ops.moela.ep_plan(case.tokens[rank].topk_ids, case.E, case.R)
        return slots, counts

    def read(*_):
        raise AssertionError("the host reads a tensor")

    with monkeypatch.context() as patch, moela.use_backend("triton"):
        patch.setattr(case, "plan", plan)
        for name in ("item", "tolist", "numpy", "cpu", "nonzero", "__bool__", "__int__", "__index__"):
            patch.setattr(Tensor, name, read)
        got = case.exchange(ranks)
    assert_same(got, want)
    for rank, (slots, counts) in enumerate(plans):
        assert torch.equal(plan(rank)[0], slots)
        assert torch.equal(plan(rank)[1], counts)


def test_rows_without_ids_come_in_order():
    """What the derivative of a combine sends."""
    case = Case("uniform", R=2)
    results = []
    for of in both(case):
        for rank in (0, 1):
            slots, counts = case.plan(rank)
            x = of.exchange(rank, 32)
            of.kernels.send(x, [case.columns(rank, rank)[0]], [0], slots, counts, False)
        for rank in (0, 1):
            x = of.exchange(rank, 32)
            out = torch.full((2 * case.max_tokens, 32), 0xFF, dtype=torch.uint8)
            counts = torch.full((2,), 77, dtype=torch.int32)
            of.kernels.receive(
                x, "compact", [out], [0], 0, 0, 0, 0, 0, None, None, None, None, counts, len(out)
            )
            results.append({"out": out, "counts": counts})
    assert_same(results[:2], results[2:])
