"""`moela bench ep --device cuda`: virtual ranks on one GPU, beside a copy in its memory.

Every rank is a thread with a stream of its own, and replays a CUDA graph of the exchange, so that Python's
time is none of it. A sample is the time until all ranks have ended, over several replays. The copy moves as
many bytes as the exchange reads and writes, on all ranks together: what it takes is the least that an
exchange through the memory of one GPU can take.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import moela
import torch
from moela.bench.ep_ranks import COMBINE_OUT, DISPATCH_OUT, Setting
from moela.bench.tables import LOOK
from moela.bench.timer import Timing
from moela.ep import EpBuffer, run_local
from moela.ep.local import LocalRank
from rich.table import Table

SAMPLE_SECONDS = 0.02
COPY = "copy"


@dataclass(frozen=True)
class Measured:
    """One exchange of all ranks."""

    tokens: int
    what: str
    sent_bytes: int  # rows of x that a rank sends, the mean of the ranks
    moved_bytes: int  # read and written in memory, of all ranks
    timing: Timing
    copy: Timing  # of moved_bytes / 2, each of them read and written


def measure(setting: Setting, device: torch.device) -> list[Measured]:
    """Raises ValueError where a result is wrong."""
    found = []
    for tokens in setting.tokens:
        found += Race(setting, tokens, device).run()
    return found


class Race:
    """What the ranks measure at one number of tokens."""

    def __init__(self, setting: Setting, tokens: int, device: torch.device) -> None:
        self.setting, self.tokens, self.device = setting, tokens, device
        self._barrier = threading.Barrier(setting.ranks)
        self._start = 0.0
        self._end = [0.0] * setting.ranks

    def run(self) -> list[Measured]:
        of_ranks = run_local(self.setting.ranks, self._on_rank, device=self.device)
        found = []
        for what in (DISPATCH_OUT, COMBINE_OUT):
            sent, moved, timings = zip(*(of_rank[what] for of_rank in of_ranks), strict=True)
            copy = self._copy(sum(moved) // 2)
            found.append(Measured(self.tokens, what, sum(sent) // len(sent), sum(moved), timings[0], copy))
        return found

    def _on_rank(self, group: LocalRank) -> dict[str, tuple[int, int, Timing]]:
        s, T = self.setting, self.tokens
        g = torch.Generator().manual_seed(group.index)
        x = torch.randn(T, s.hidden, generator=g).bfloat16().to(self.device)
        ids = torch.rand(T, s.experts, generator=g).topk(s.topk).indices.int().to(self.device)
        weights = torch.rand(T, s.topk, generator=g).to(self.device)
        sizes = {"num_experts": s.experts, "hidden": s.hidden, "topk": s.topk, "max_tokens": T}
        with EpBuffer(group, **sizes) as buffer, torch.no_grad():
            came = moela.ep_dispatch_dynamic(x, ids, weights, group=buffer.name)
            # No row to spare: rows of zeros would be a part of what is measured.
            N, name = came.x.size(0), buffer.name
            out = moela.ep_dispatch(x, ids, weights, group=name, capacity=N)
            back = moela.ep_combine(out.x, out.handle, group=name)
            num_ranks = (out.handle.slots.sort(1).values.diff(dim=1) > 0).sum(1, keepdim=True) + 1
            if not torch.equal(back, (x.float() * num_ranks).bfloat16()):
                raise ValueError("ep: a token did not come back as it went")
            calls = {
                DISPATCH_OUT: lambda: moela.ep_dispatch_out(x, ids, weights, group=name, out=out),
                COMBINE_OUT: lambda: moela.ep_combine_out(out.x, out.handle, group=name, out=back),
            }
            sent = int(out.handle.send_counts.sum())
            row, wire = x.size(1) * x.element_size(), x.size(1) * x.element_size() + 8 * s.topk
            moved = {
                DISPATCH_OUT: (T + sent + 2 * N) * wire,  # to send: read, write; to receive: read, write
                COMBINE_OUT: (2 * N + sent + T) * row,
            }
            found = {}
            for what, call in calls.items():
                timing = self._time(self._graph_of(call), group.index)
                found[what] = (sent * row, moved[what], timing)
            self._wait()
            buffer.check()
            return found

    def _graph_of(self, call: Callable[[], object]) -> Callable[[], object]:
        """To capture waits for the device, where no kernel of another rank may wait for this one."""
        call()
        self._wait()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            call()
        self._wait()
        return graph.replay

    def _time(self, call: Callable[[], object], rank: int) -> Timing:
        self._sample(call, 2, rank)
        repeats = max(1, round(SAMPLE_SECONDS / self._sample(call, 2, rank)))
        return Timing(tuple(self._sample(call, repeats, rank) for _ in range(self.setting.rounds)))

    def _sample(self, call: Callable[[], object], repeats: int, rank: int) -> float:
        """Seconds of a call, until all ranks have ended: the same number on all."""
        self._wait()
        if rank == 0:
            self._start = time.perf_counter()
        self._barrier.wait()
        for _ in range(repeats):
            call()
        self._synchronize()
        self._end[rank] = time.perf_counter()
        self._barrier.wait()
        seconds = (max(self._end) - self._start) / repeats
        self._barrier.wait()
        return seconds

    def _wait(self) -> None:
        self._synchronize()
        self._barrier.wait()

    def _synchronize(self) -> None:
        torch.cuda.current_stream(self.device).synchronize()

    def _copy(self, num_bytes: int) -> Timing:
        """Of one tensor to another, by the driver."""
        source, to = (torch.empty(num_bytes, dtype=torch.uint8, device=self.device) for _ in range(2))

        def sample(repeats: int) -> float:
            self._synchronize()
            start = time.perf_counter()
            for _ in range(repeats):
                to.copy_(source)
            self._synchronize()
            return (time.perf_counter() - start) / repeats

        sample(2)
        repeats = max(1, round(SAMPLE_SECONDS / sample(2)))
        return Timing(tuple(sample(repeats) for _ in range(self.setting.rounds)))


def table(setting: Setting, found: list[Measured]) -> Table:
    title = (
        f"{setting.ranks} virtual ranks on one GPU, {setting.hidden} bfloat16, top-{setting.topk} of "
        f"{setting.experts} experts"
    )
    result = Table(title=title, **LOOK)
    for column in ("tokens", "call", "µs", "p10 .. p90", "GB/s", "GB/s moved", f"% {COPY}"):
        result.add_column(column, justify="left" if column == "call" else "right", no_wrap=True)
    for m in found:
        t = m.timing
        result.add_row(
            str(m.tokens),
            m.what,
            f"{t.median * 1e6:,.0f}",
            f"{t.p10 * 1e6:,.0f} .. {t.p90 * 1e6:,.0f}",
            f"{m.sent_bytes / t.median / 1e9:,.0f}",
            f"{m.moved_bytes / t.median / 1e9:,.0f}",
            f"{m.copy.median / t.median:.0%}",
        )
    return result


def as_json(setting: Setting, found: list[Measured]) -> list[dict]:
    return [
        {
            "transport": "local",
            "phase": m.what,
            "gpus": setting.ranks,
            "tokens": m.tokens,
            "time_us": m.timing.median * 1e6,
            "p10_us": m.timing.p10 * 1e6,
            "p90_us": m.timing.p90 * 1e6,
            "copy_us": m.copy.median * 1e6,
            "moved_bytes": m.moved_bytes,
        }
        for m in found
    ]
