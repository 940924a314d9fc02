"""The Triton kernels of an exchange, in the interpreter: every bit that the definition writes.

Ranks are launches one after another in one process.
"""

import dataclasses
from types import SimpleNamespace
from typing import Any

import device_definition
import interpreter
import moela
import pytest
import routing
import torch
from moela.ep.device import DeviceExchange, Fault, Memory, Status
from moela.ep.placement import expert_range
from moela.ep.wire import wire_format
from torch import Tensor

pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("Triton's interpreter is tested only where there is no GPU", allow_module_level=True)

from moela.kernels import _fp8, ep_combine, ep_dispatch

interpreter.hasten()

TRITON = SimpleNamespace(**{
    f.__name__: f
    for f in (
        ep_dispatch.send, ep_dispatch.place, ep_dispatch.receive,
        ep_combine.combine_send, ep_combine.combine_receive,
    )
})  # fmt: skip
NOW = {"deadline_ns": 0}


class Ranks:
    """Of one implementation, with memory of their own. Rows hold NaN where none has been stored yet."""

    def __init__(self, kernels: Any, R: int, max_tokens: int, max_row_bytes: int):
        self.kernels, self.R, self.max_tokens, self.max_row_bytes = kernels, R, max_tokens, max_row_bytes
        self.memory = Memory(R, max_tokens, max_row_bytes)
        self.bytes = torch.empty(R, self.memory.num_bytes + 128, dtype=torch.uint8)
        if self.bytes.numel() < 2**24:  # else most of it stays untouched
            self.bytes.fill_(0xFF)
        self.at = [-t.data_ptr() % 128 for t in self.bytes]
        for t, at in zip(self.bytes, self.at, strict=True):
            t[at : at + self.memory.rows_at(0, 0)] = 0
        self.epochs = torch.zeros(R, 2, dtype=torch.int64)
        self.done = torch.zeros(R, 2, dtype=torch.int32)
        self.status = torch.zeros(R, 1, dtype=torch.int64)

    def exchange(self, rank: int, row_bytes: int, kind: int = 0x9ABCDEF0, deadline_ns: int = 10**10):
        return DeviceExchange(
            bases=torch.tensor([t.data_ptr() + at for t, at in zip(self.bytes, self.at, strict=True)]),
            rank=rank,
            num_ranks=self.R,
            max_tokens=self.max_tokens,
            max_row_bytes=self.max_row_bytes,
            epochs=self.epochs[rank],
            kind=kind,
            row_bytes=row_bytes,
            deadline_ns=deadline_ns,
            done=self.done[rank],
            status=self.status[rank],
        )

    def said(self, rank: int) -> Status | None:
        word = self.status[rank].item()
        return Status.of(word) if word else None

    def state(self, end: int | None = None) -> list[Tensor]:
        """All that kernels may have written; of the memory, what is before end."""
        end = self.memory.num_bytes if end is None else end
        memories = [t[at : at + end] for t, at in zip(self.bytes, self.at, strict=True)]
        return [*memories, self.epochs, self.done, self.status]


class Case:
    """What ranks send, and what comes out: the same for every implementation."""

    def __init__(self, routing_case="dropped", R=2, E=5, topk=3, max_tokens=4, widths=(32,), **options: Any):
        self.R, self.E, self.topk, self.max_tokens = R, E, topk, max_tokens
        self.layout = options.get("layout", "compact")
        self.dtype = options.get("dtype", torch.bfloat16)
        self.H = options.get("H", 9)  # of what is combined
        most = R * max_tokens * (topk if self.layout == "expert" else 1)
        self.capacity = options.get("capacity", most)
        self.pad = options.get("pad", 0)  # bytes between rows of what is sent
        self.widths = (*widths, 4 * topk, 4 * topk)
        self.wire = wire_format(self.widths)
        self.y_bytes = -(-self.H * self.dtype.itemsize // 16) * 16
        self.max_row_bytes = options.get("max_row_bytes", max(self.wire.row_bytes, self.y_bytes) + 16)
        self.tokens = routing.tokens(routing_case, R, E, topk, 1, max_tokens)
        self.experts = [expert_range(E, R, r) for r in range(R)]

    def ranks(self, kernels: Any) -> Ranks:
        return Ranks(kernels, self.R, self.max_tokens, self.max_row_bytes)

    def plan(self, rank: int) -> tuple[Tensor, Tensor]:
        _, counts, slots = moela.reference.ep_plan(self.tokens[rank].topk_ids, self.E, self.R)
        return slots, counts

    def columns(self, rank: int, seed: int) -> list[Tensor]:
        """All bits: NaN, -0.0 and what no number is among them."""
        g = torch.Generator().manual_seed(seed)
        slots, _ = self.plan(rank)
        ids = self.tokens[rank].topk_ids
        ids = torch.where(slots >= 0, ids, -1).int()
        bits = [
            torch.randint(256, (len(ids), w + self.pad), generator=g, dtype=torch.uint8) for w in self.widths
        ]
        bits = [b[:, self.pad :] for b in bits]
        bits[-2] = ids.view(torch.uint8)
        return [*bits[:-2], ids.view(torch.uint8), bits[-1]]

    def send(self, ranks: Ranks, rank: int, seed: int = 0, is_abort: bool = False, **changes: Any) -> None:
        x = ranks.exchange(rank, self.wire.row_bytes)._replace(**changes)
        (slots, counts), columns = self.plan(rank), self.columns(rank, 10 * seed + rank)
        if is_abort:
            slots, counts, columns = slots[:0], torch.zeros_like(counts), [c[:0] for c in columns]
        ranks.kernels.send(x, columns, list(self.wire.offsets), slots, counts, is_abort)

    def receive(self, ranks: Ranks, rank: int, **changes: Any) -> dict[str, Tensor | None]:
        x = ranks.exchange(rank, self.wire.row_bytes)._replace(**changes)
        mine, of = self.experts[rank], {"dtype": torch.int32}
        offsets = list(self.wire.offsets)
        is_compact = self.layout == "compact"
        places = self.capacity * (len(mine) if self.layout == "masked" else 1)
        got = {
            "positions": None if is_compact else torch.full((self.R * self.max_tokens, self.topk), 77, **of),
            "experts": None if is_compact else torch.full((len(mine) + (self.layout == "expert"),), 77, **of),
            "topk_ids": torch.full((places, self.topk), 77, **of) if is_compact else None,
            "topk_weights": torch.full((places, self.topk) if is_compact else (places,), float("nan")),
            "recv_counts": torch.full((self.R,), 77, **of),
        }
        outs = [torch.full((places, w), 0xFF, dtype=torch.uint8) for w in self.widths[:-2]]
        where = (offsets[-2], offsets[-1], self.topk, mine.start, len(mine))
        if not is_compact:
            ranks.kernels.place(
                x, self.layout, offsets[-2], *where[2:], self.capacity, got["positions"], got["experts"]
            )
        ranks.kernels.receive(x, self.layout, outs, offsets[:-2], *where, **got, capacity=self.capacity)
        return got | {f"out{i}": out for i, out in enumerate(outs)}

    def combine_send(self, ranks: Ranks, rank: int, got: dict, seed: int = 0, **changes: Any) -> None:
        x = ranks.exchange(rank, self.y_bytes, kind=1)._replace(**changes)
        g = torch.Generator().manual_seed(10 * seed + rank)
        places = got["out0"].size(0)
        y = torch.randn(places, self.H + self.pad, generator=g).to(self.dtype)[:, : self.H]
        if self.layout == "compact":
            rows = torch.arange(self.R * self.max_tokens, dtype=torch.int32)
            positions = torch.where(rows < self.capacity, rows, -1)[:, None]
            ranks.kernels.combine_send(x, y, None, positions, got["recv_counts"])
        else:
            weights = torch.randn(places, generator=g)
            ranks.kernels.combine_send(x, y, weights, got["positions"], got["recv_counts"])

    def combine_receive(self, ranks: Ranks, rank: int, **changes: Any) -> dict[str, Tensor]:
        x = ranks.exchange(rank, self.y_bytes, kind=1)._replace(**changes)
        slots, counts = self.plan(rank)
        out = torch.full((len(slots), self.H), float("nan"), dtype=self.dtype)
        ranks.kernels.combine_receive(x, out, slots, counts)
        return {"combined": out}

    def exchange(self, ranks: Ranks, seed: int = 0) -> list[dict]:
        """One dispatch and one combine of all ranks."""
        every = range(self.R)
        for rank in every:
            self.send(ranks, rank, seed)
        got = [self.receive(ranks, rank) for rank in every]
        for rank in every:
            self.combine_send(ranks, rank, got[rank], seed)
        return [got[rank] | self.combine_receive(ranks, rank) for rank in every]


def as_bytes(t: Tensor) -> Tensor:
    return t.contiguous().view(torch.uint8)


def assert_same(got: list[dict], want: list[dict]) -> None:
    for rank, (one, other) in enumerate(zip(got, want, strict=True)):
        for name, t in one.items():
            if t is None:
                assert other[name] is None
            else:
                assert torch.equal(as_bytes(t), as_bytes(other[name])), (rank, name)


def assert_same_state(got: Ranks, want: Ranks, end: int | None = None) -> None:
    for one, other in zip(got.state(end), want.state(end), strict=True):
        assert torch.equal(one, other)


def both(case: Case) -> list[Ranks]:
    return [case.ranks(kernels) for kernels in (TRITON, device_definition)]


@pytest.fixture(autouse=True)
def _three_blocks(monkeypatch):
    target = dataclasses.replace(_fp8.INTERPRETER, multiprocessors=3)
    monkeypatch.setattr(_fp8, "INTERPRETER", target)


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
    "wide": {"routing_case": "uniform", "topk": 33, "E": 40, "max_tokens": 2},
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
        got[1]["out0"] = got[1]["out0"][:3]
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


def test_a_rank_that_gives_nothing_back_is_left_alone_and_the_others_are_told():
    case = Case("uniform", R=3, E=3)
    ranks, defined = both(case)
    for of in (ranks, defined):
        for rank in (0, 1, 2, 0, 1, 2):
            case.send(of, rank)
        case.receive(of, 0)
        case.receive(of, 2)
        case.send(of, 0, **NOW)
    assert ranks.said(0) == (Fault.NOT_RELEASED, 1, 3)
    assert_same_state(ranks, defined, ranks.memory.rows_at(0, 0))  # the definition sends rows, nobody reads
    case.receive(ranks, 2)
    case.receive(ranks, 2, **NOW)
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
