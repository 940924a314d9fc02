"""What the ranks of `moela bench ep` do: exchange the same tokens in every way, in turns.

A sample is the time of the slowest rank, over several calls that begin together. All contestants move the
same rows: the tokens of a rank to every rank that has one of their experts.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import moela
import torch
import torch.distributed as dist
from moela.bench.timer import Timing
from moela.ep import EpBuffer
from torch import multiprocessing

GLOO, MEMCPY = "all_to_all", "memcpy"  # the baselines
# What is measured of each transport: the rows alone, the ops, and these into tensors that there are already.
ROWS, DISPATCH, COMBINE, DISPATCH_OUT, COMBINE_OUT = (
    "rows",
    "dispatch",
    "combine",
    "dispatch_out",
    "combine_out",
)
SAMPLE_SECONDS = 0.02


@dataclass(frozen=True)
class Setting:
    """What is exchanged, and how often."""

    ranks: int
    transports: tuple[str, ...]
    tokens: tuple[int, ...]
    hidden: int
    topk: int
    experts: int
    rounds: int


@dataclass(frozen=True)
class Measured:
    """One contestant at one number of tokens: seconds of a call on the slowest rank."""

    tokens: int
    transport: str  # empty: a baseline
    what: str
    num_bytes: int  # of the rows of x that a rank sends, the mean of the ranks
    timing: Timing


def measure(setting: Setting) -> list[Measured]:
    """Start the ranks, one thread each, and wait for them. Raises ValueError where a result is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        results = context.SimpleQueue()
        try:
            multiprocessing.spawn(_run, (setting, str(Path(folder) / "store"), results), setting.ranks)
        except multiprocessing.ProcessRaisedException as error:
            raise ValueError(str(error).strip().splitlines()[-1].removeprefix("ValueError: ")) from None
        return results.get()


def _run(rank: int, setting: Setting, store: str, results) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=setting.ranks)
    with torch.inference_mode():
        found = [measured for tokens in setting.tokens for measured in _at(rank, setting, tokens)]
    if rank == 0:
        results.put(found)
    dist.barrier()
    dist.destroy_process_group()


def _at(rank: int, setting: Setting, T: int) -> list[Measured]:
    g = torch.Generator().manual_seed(rank)
    x = torch.randn(T, setting.hidden, generator=g).bfloat16()
    ids = torch.rand(T, setting.experts, generator=g).topk(setting.topk).indices.int()
    weights = torch.rand(T, setting.topk, generator=g)
    send_rows, counts, slots = moela.ep_plan(ids, setting.experts, setting.ranks)
    num_rows = int(counts.sum())
    num_bytes = torch.tensor(num_rows * x.size(1) * x.element_size() / setting.ranks)
    dist.all_reduce(num_bytes)

    packed = x[send_rows[:num_rows]]
    calls: dict[tuple[str, str], Callable[[], object]] = {
        ("", GLOO): _all_to_all(packed, counts),
        ("", MEMCPY): partial(torch.empty_like(packed).copy_, packed),
    }
    buffers = []
    for name in setting.transports:
        buffer = EpBuffer(
            num_experts=setting.experts,
            hidden=setting.hidden,
            topk=setting.topk,
            max_tokens=T,
            transport=name,
        )
        buffers.append(buffer)
        got = moela.ep_dispatch(x, ids, weights, group=buffer.name)
        back = moela.ep_combine(got.x, got.handle, group=buffer.name)
        ranks_of_token = (slots.sort(1).values.diff(dim=1) > 0).sum(1, keepdim=True) + 1
        if not torch.equal(back, (x.float() * ranks_of_token).bfloat16()):
            raise ValueError(f"ep: {name}: a token did not come back as it went")
        calls[name, ROWS] = _rows(buffer, x, send_rows, counts)
        calls[name, DISPATCH] = partial(moela.ep_dispatch, x, ids, weights, group=buffer.name)
        calls[name, DISPATCH_OUT] = partial(
            moela.ep_dispatch_out, x, ids, weights, group=buffer.name, out=got
        )
        calls[name, COMBINE] = partial(moela.ep_combine, got.x, got.handle, group=buffer.name)
        calls[name, COMBINE_OUT] = partial(
            moela.ep_combine_out, got.x, got.handle, group=buffer.name, out=back
        )
    timings = _race(list(calls.values()), setting.rounds)
    for buffer in buffers:
        buffer.close()
    return [
        Measured(T, transport, what, int(num_bytes), timing)
        for (transport, what), timing in zip(calls, timings, strict=True)
    ]


def _all_to_all(packed: torch.Tensor, counts: torch.Tensor) -> Callable[[], object]:
    """How the rows would travel with torch.distributed alone: the counts, then the rows, already packed."""
    sent = counts.tolist()
    theirs = torch.empty_like(counts)
    dist.all_to_all_single(theirs, counts)
    out = packed.new_empty(int(theirs.sum()), packed.size(1))

    def call() -> None:
        dist.all_to_all_single(theirs, counts)
        dist.all_to_all_single(out, packed, theirs.tolist(), sent)

    return call


def _rows(buffer: EpBuffer, x: torch.Tensor, send_rows: torch.Tensor, counts: torch.Tensor):
    """The transport alone: x packed, sent, and there for the receiver to read."""
    columns = [x.view(torch.uint8)]

    def call() -> None:
        exchange = buffer.exchange
        with exchange.receive(exchange.send("rows", columns, send_rows, counts)):
            pass

    return call


def _race(calls: list[Callable[[], object]], rounds: int) -> list[Timing]:
    """Of each a sample per round, each round in another order. All ranks do the same at the same time."""
    repeats = []
    for call in calls:
        _sample(call, 2)  # warms up
        repeats.append(max(1, round(SAMPLE_SECONDS / _sample(call, 2))))
    samples: list[list[float]] = [[] for _ in calls]
    for turn in range(rounds):
        for i in range(len(calls)):
            i = (i + turn) % len(calls)
            samples[i].append(_sample(calls[i], repeats[i]))
    return [Timing(tuple(s)) for s in samples]


def _sample(call: Callable[[], object], repeats: int) -> float:
    """Seconds per call on the slowest rank, the same number on all."""
    dist.barrier()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    seconds = torch.tensor((time.perf_counter() - start) / repeats, dtype=torch.float64)
    dist.all_reduce(seconds, dist.ReduceOp.MAX)
    return seconds.item()
