"""The only timing code: contestants that take turns in one process.

Machines are noisy and their clocks drift, so times of different runs do not compare. Here all contestants,
the roofs of the machine among them, give one sample in every round, each round in another order.

>>> timings = race([Contestant("cpu", f), Contestant("torch", g)], rounds=15, clock=clock_for("cpu"))
>>> timings["cpu"].median
"""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

# A sample lasts at least this long, so that reading the clock and one interrupt do not matter.
SAMPLE_SECONDS = 1e-3
# A cold call needs an eviction, which takes some hundred times as long as a short call.
MAX_COLD_REPEATS = 8


@dataclass(frozen=True)
class Timing:
    """Seconds per call, one sample per round."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return self._quantile(0.5)

    @property
    def p10(self) -> float:
        return self._quantile(0.1)

    @property
    def p90(self) -> float:
        return self._quantile(0.9)

    def _quantile(self, q: float) -> float:
        """Linear between the two samples beside it."""
        ordered = sorted(self.samples)
        below, part = divmod(q * (len(ordered) - 1), 1)
        low, high = ordered[int(below)], ordered[min(int(below) + 1, len(ordered) - 1)]
        return low + part * (high - low)


@dataclass(frozen=True)
class Contestant:
    """Something to time. The call's result is dropped.

    `warm` is a small call of the same code. Between an eviction and a call it is not timed: in a loop over
    layers the code stays in the cache, the weights do not, and an interpreter with cold caches takes 100 µs.
    """

    name: str
    call: Callable[[], object]
    warm: Callable[[], object] | None = None


class Clock(Protocol):
    """Measures seconds per call over `repeats` calls, with `before` ahead of each and outside the time."""

    name: str

    def __call__(
        self, call: Callable[[], object], repeats: int, before: Callable[[], object] | None
    ) -> float: ...


@dataclass(frozen=True)
class HostClock:
    """A clock that the host reads."""

    name: str
    now: Callable[[], float]

    def __call__(
        self, call: Callable[[], object], repeats: int, before: Callable[[], object] | None
    ) -> float:
        now, total = self.now, 0.0
        if before is None:
            start = now()
            for _ in range(repeats):
                call()
            return (now() - start) / repeats
        for _ in range(repeats):
            before()
            start = now()
            call()
            total += now() - start
        return total / repeats


CPU_TIME = HostClock("CPU time", time.process_time)
WALL_TIME = HostClock("wall time", time.perf_counter)


@dataclass(frozen=True)
class CudaClock:
    """Events on the current stream. `before` should keep the device busy longer than a launch takes."""

    name: str = "CUDA events"

    def __call__(
        self, call: Callable[[], object], repeats: int, before: Callable[[], object] | None
    ) -> float:
        pairs = []
        for _ in range(repeats):
            if before is not None:
                before()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            pairs.append((start, end))
        torch.cuda.synchronize()
        return sum(start.elapsed_time(end) for start, end in pairs) * 1e-3 / repeats


def clock_for(device: torch.device | str) -> Clock:
    """CPU time on one thread, as other processes do not count in it; wall time on more; events on CUDA."""
    if torch.device(device).type == "cuda":
        return CudaClock()
    return CPU_TIME if torch.get_num_threads() == 1 else WALL_TIME


def race(
    contestants: Sequence[Contestant],
    *,
    rounds: int,
    clock: Clock,
    before: Callable[[], object] | None = None,
    on_sample: Callable[[str], object] | None = None,
) -> dict[str, Timing]:
    """Time the contestants in turns; the result has them in the order given.

    Args:
        contestants: with different names.
        rounds: samples of each.
        clock: see `clock_for`.
        before: runs ahead of every call and is not timed: evicts the caches.
        on_sample: told the contestant's name after each of its samples, outside the time.
    """
    ahead = {c.name: _ahead(c, before) for c in contestants}
    repeats = {c.name: _calibrate(c, clock, ahead[c.name]) for c in contestants}
    samples: dict[str, list[float]] = {c.name: [] for c in contestants}
    collects = gc.isenabled()
    gc.disable()
    try:
        for turn in range(rounds):
            first = turn % len(contestants)
            for c in [*contestants[first:], *contestants[:first]]:
                samples[c.name].append(clock(c.call, repeats[c.name], ahead[c.name]))
                if on_sample is not None:
                    on_sample(c.name)
    finally:
        if collects:
            gc.enable()
    return {name: Timing(tuple(values)) for name, values in samples.items()}


def _ahead(contestant: Contestant, before: Callable[[], object] | None) -> Callable[[], object] | None:
    """What runs ahead of each call of the contestant."""
    if before is None or contestant.warm is None:
        return before

    def both() -> None:
        before()
        contestant.warm()

    return both


def _calibrate(contestant: Contestant, clock: Clock, before: Callable[[], object] | None) -> int:
    """How many calls make a sample; warms the contestant up."""
    clock(contestant.call, 1, before)
    seconds = max(clock(contestant.call, 1, before), 1e-7)
    repeats = max(1, round(SAMPLE_SECONDS / seconds))
    return repeats if before is None else min(repeats, MAX_COLD_REPEATS)
