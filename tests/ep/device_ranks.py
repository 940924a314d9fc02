"""Ranks whose rows kernels exchange, one after another in one process: what they send and get."""

from typing import Any

import moela
import routing
import torch
from moela.ep.device import DeviceExchange, Kernels, Memory, Status
from moela.ep.placement import expert_range
from moela.ep.wire import wire_format
from torch import Tensor


class Ranks:
    """Of one implementation, with memory of their own. Rows hold NaN where none has been stored yet."""

    def __init__(self, kernels: Kernels, R: int, max_tokens: int, max_row_bytes: int):
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

    def ranks(self, kernels: Kernels) -> Ranks:
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
            weights[: rank == 0] = torch.inf  # which makes NaN of what is behind the columns
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
