"""What is called faster, what is called wrong, and what a file keeps."""

import json
from dataclasses import replace

import moela
import pytest
import torch
from moela.bench import report, suite
from moela.bench.bench_fp8_gemm import BENCH
from moela.bench.bench_per_block_quant_fp8 import BENCH as QUANT
from moela.bench.report import Case, Result, Wrong
from moela.bench.suite import Baseline, Entry

CPU = torch.device("cpu")
CASE = Case("fp8_gemm", "deepseek-v3", "kv_a", "bf16", 1, flops=8_000, bytes=4_000)


def result(contestant="cpu", median=10.0, p10=9.0, p90=11.0, is_baseline=False):
    return Result(CASE, contestant, is_baseline, median, p10, p90, 0.001, 0.8, 8.0)


def a_report(*results, wrong=()):
    return report.report({"cpu": "made up", "threads": 1}, list(results), list(wrong))


# --- the rule --------------------------------------------------------------------------------------------


def test_intervals_that_are_apart_show_a_difference():
    assert str(result(median=10, p90=11).ratio_to(result(median=20, p10=19, p90=21))) == "2.00x"
    assert str(result(median=20, p10=19, p90=21).ratio_to(result(median=10, p90=11))) == "0.50x"


def test_intervals_that_overlap_show_none_however_far_the_medians_are_apart():
    assert str(result(median=10, p90=20).ratio_to(result(median=30, p10=19, p90=31))) == "~"


def test_rates_are_those_of_the_algorithm():
    r = result(median=10)
    assert (r.gbytes_per_s, r.gflops_per_s) == (0.4, 0.8)


def test_percent_of_the_roofline_is_the_time_floor_over_the_time():
    assert result(median=10).roofline_percent == pytest.approx(50)  # 5 us of reading against 1 of computing


# --- wrong results ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs():
    return BENCH.inputs(BENCH.cases("deepseek-v3", ["kv_a"], [2], ["bf16"])[0], CPU)


def test_every_contestant_of_the_bench_is_right(inputs):
    entries = [Entry("reference", suite.backend_call("reference", "fp8_gemm", inputs))]
    entries += [
        Entry(b.name, b.prepare(inputs), b.tolerance) for b in BENCH.baselines if b.why_not(CPU) is None
    ]
    verdicts = suite.check(BENCH, inputs, entries)
    assert [name for name, verdict in verdicts.items() if isinstance(verdict, str)] == []


def test_one_wrong_element_of_a_backend_is_found(inputs):
    def planted():
        d = moela.fp8_gemm(**inputs)
        d[1, 500] += 1
        return d

    [verdict] = suite.check(BENCH, inputs, [Entry("cpu", planted)]).values()
    assert "1 of 1152 elements out of bounds, first at [1, 500]" in verdict


def test_a_wrong_baseline_is_found_with_its_error(inputs):
    wrong = Entry("torch", lambda: moela.fp8_gemm(**inputs) * 1.1, tolerance=0.02)
    assert suite.check(BENCH, inputs, [wrong]) == {
        "torch": "relative error of the result 0.1, expected at most 0.02"
    }


@pytest.mark.parametrize(
    "bad",
    [lambda d: d * float("nan"), lambda d: d[:1], lambda d: d.float() * 0],
    ids=["NaN", "shape", "zero"],
)
def test_a_baseline_that_gives_nonsense_is_wrong(inputs, bad):
    verdicts = suite.check(BENCH, inputs, [Entry("torch", lambda: bad(moela.fp8_gemm(**inputs)), 0.02)])
    assert isinstance(verdicts["torch"], str)


def test_a_contestant_that_raises_is_wrong(inputs):
    verdicts = suite.check(BENCH, inputs, [Entry("cpu", lambda: 1 / 0)])
    assert verdicts == {"cpu": "raises ZeroDivisionError: division by zero"}


def test_all_parts_of_a_large_weight_are_checked(monkeypatch):
    monkeypatch.setattr(suite, "_PART_ELEMENTS", 7168 * 128)
    [case] = QUANT.cases("deepseek-v3", ["kv_a"], [], ["bf16"])
    inputs = QUANT.inputs(case, CPU)

    def planted():
        q, sf = moela.per_block_quant_fp8(**inputs)
        sf[-1, -1] *= 2
        return q, sf

    right = Entry("reference", suite.backend_call("reference", case.op, inputs))
    verdicts = suite.check(QUANT, inputs, [right, Entry("cpu", planted)])
    assert verdicts["reference"] == 0
    assert verdicts["cpu"].startswith("sf: 1 of")


def test_a_wrong_contestant_is_not_timed(inputs):
    def never(*args, **kwargs):
        pytest.fail("timed")

    wrong = Entry("torch", lambda: torch.zeros(2, 576), 0.02)
    found = suite.measure(BENCH, CASE, inputs, [wrong], probes=None, clock=never, rounds=1)
    assert found == (
        [],
        [Wrong(CASE, "torch", "relative error of the result 1, expected at most 0.02")],
    )


def test_names_of_baselines_are_unique():
    assert len({b.name for b in BENCH.baselines}) == len(BENCH.baselines)
    assert all(isinstance(b, Baseline) for b in BENCH.baselines)


# --- the file --------------------------------------------------------------------------------------------


def test_a_file_gives_back_the_report(tmp_path):
    found = a_report(result(), result("torch", is_baseline=True), wrong=[Wrong(CASE, "torch-fp32", "why")])
    report.write(found, tmp_path / "a.json")
    assert report.read(tmp_path / "a.json") == found


def test_a_file_has_what_its_numbers_depend_on_and_what_follows_from_them(tmp_path):
    slow = result("torch", median=20, p10=19, p90=21, is_baseline=True)
    report.write(a_report(result(), slow), tmp_path / "a.json")
    data = json.loads((tmp_path / "a.json").read_text())
    assert {"machine", "versions", "commit", "command", "date"} <= set(data)
    assert set(data["versions"]) == {"python", "torch", "triton", "moela"}
    assert data["results"][0]["ratios"] == {"torch": {"value": 2.0, "is_difference": True}}
    assert data["results"][0]["gflops_per_s"] == 0.8


def test_the_machine_record_has_what_times_depend_on():
    where = report.machine("cpu")
    assert where["threads"] == torch.get_num_threads()
    assert set(where) == {"cpu", "cores", "isa", "gpu", "threads"}


def test_a_tree_outside_git_has_an_unknown_commit(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "__file__", str(tmp_path / "report.py"))
    assert report.commit() == "unknown"


def test_a_report_is_compared_by_case_and_contestant_not_by_cost():
    assert replace(CASE, flops=1).key == CASE.key
