"""How contestants are timed. A clock that counts calls stands in for time: no test depends on speed."""

import pytest
import torch
from moela import backends
from moela.bench import roofline, timer
from moela.bench.timer import Contestant, HostClock, Timing, race


class Log:
    """What happened in which order; every event takes `seconds`."""

    def __init__(self, seconds=1.0):
        self.events, self.seconds = [], seconds
        self.clock = HostClock("events", lambda: len(self.events) * self.seconds)

    def contestant(self, name):
        return Contestant(name, lambda: self.events.append(name))

    def evict(self):
        self.events.append("evict")


def test_a_timing_gives_median_and_the_tenth_and_ninetieth_percentile():
    timing = Timing(tuple(float(i) for i in range(11)))
    assert (timing.p10, timing.median, timing.p90) == (1.0, 5.0, 9.0)


def test_one_sample_is_its_own_median_and_interval():
    timing = Timing((3.0,))
    assert (timing.p10, timing.median, timing.p90) == (3.0, 3.0, 3.0)


def test_every_contestant_gives_one_sample_per_round_in_the_order_given():
    log = Log()
    timings = race([log.contestant("b"), log.contestant("a")], rounds=5, clock=log.clock)
    assert list(timings) == ["b", "a"]
    assert [len(t.samples) for t in timings.values()] == [5, 5]


def test_contestants_take_turns_and_the_first_changes_every_round():
    log, order = Log(), []
    race([log.contestant(n) for n in "abc"], rounds=3, clock=log.clock, on_sample=order.append)
    assert "".join(order) == "abcbcacab"


def test_short_calls_are_repeated_until_a_sample_is_long_enough():
    log = Log(seconds=timer.SAMPLE_SECONDS / 10)
    timing = race([log.contestant("a")], rounds=1, clock=log.clock)["a"]
    assert len(log.events) == 2 + 10  # warm-up, calibration, one sample
    assert timing.median == pytest.approx(log.seconds)  # per call, not per sample


def test_what_comes_before_runs_ahead_of_every_call_and_is_not_timed():
    log = Log()
    timing = race([log.contestant("a")], rounds=3, clock=log.clock, before=log.evict)["a"]
    assert log.events == ["evict", "a"] * 5  # warm-up, calibration, three samples
    assert timing.samples == (1.0, 1.0, 1.0)


def test_a_small_call_warms_the_code_between_the_eviction_and_the_call():
    log = Log()
    contestant = Contestant("a", lambda: log.events.append("a"), warm=lambda: log.events.append("warm"))
    timing = race([contestant], rounds=1, clock=log.clock, before=log.evict)["a"]
    assert log.events == ["evict", "warm", "a"] * 3
    assert timing.samples == (1.0,)


def test_cold_calls_are_repeated_a_few_times_only():
    log = Log(seconds=1e-6)
    race([log.contestant("a")], rounds=1, clock=log.clock, before=log.evict)
    assert log.events.count("a") == 2 + timer.MAX_COLD_REPEATS


@pytest.mark.parametrize(("threads", "clock"), [(1, timer.CPU_TIME), (2, timer.WALL_TIME)])
def test_one_thread_is_timed_by_cpu_time_and_more_by_the_wall(monkeypatch, threads, clock):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert timer.clock_for("cpu") is clock


@pytest.mark.parametrize("threads", [1, 2])
def test_the_roofs_come_from_the_race_that_their_probes_took_part_in(threads):
    probes = roofline.probes_for("cpu", threads)
    timings = race(probes.contestants, rounds=2, clock=timer.WALL_TIME, before=probes.evict)
    roofs = probes.roofline(timings)
    assert roofs.read_bytes_per_s == probes.read_bytes / timings[roofline.READ].median
    assert roofs.flops_per_s == probes.fma_flops / timings[roofline.FMA].median


def test_the_floor_is_the_slower_of_reading_and_computing():
    roofs = roofline.Roofline(Timing((1.0,)), 10, Timing((1.0,)), 100, "made up")
    assert roofs.time_floor(flops=100, num_bytes=20) == 2.0
    assert roofs.time_floor(flops=300, num_bytes=20) == 3.0


def test_without_the_library_torch_measures_the_roofs_and_says_so(monkeypatch):
    missing = backends.Library("cpu", backends.library("cpu").path, None, "libmoela_cpu.so was not built")
    monkeypatch.setattr(backends, "library", lambda name: missing)
    probes = roofline.probes_for("cpu", 1)
    assert probes.source.startswith("torch, because libmoela_cpu.so was not built")
    race(probes.contestants, rounds=1, clock=timer.WALL_TIME, before=probes.evict)


def test_the_last_level_cache_is_the_largest_that_the_system_lists(tmp_path):
    for index, size in enumerate(("32K", "1024K", "96M")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n")
    assert roofline.last_level_cache_bytes(tmp_path) == 96 << 20


def test_a_system_that_lists_no_cache_gives_the_fallback(tmp_path):
    assert roofline.last_level_cache_bytes(tmp_path) == roofline.FALLBACK_LLC_BYTES
