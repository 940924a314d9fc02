"""calibrate: constants that were planted in times are found again, and files that are none are refused."""

import json
from dataclasses import asdict

import pytest
from moela.ep.planner import topology
from moela.ep.planner.calibration import Measurement, calibrate, read
from moela.ep.planner.model import Sizes, exchange, uniform
from moela.ep.planner.topology import Figure

H100 = topology.load("dgx-h100")
PLANTED = {"sigma": 0.7, "t0": 33.0, "alpha": 47.0, "tau": 21.0}
TRUTH = H100.with_figures({name: Figure(value, "measured", "planted") for name, value in PLANTED.items()})


def timed(path, tokens, hidden=7168, nodes=4, phase="dispatch", noise=1.0):
    sizes = Sizes(nodes, 8, 256, 8, tokens, hidden, "fp8")
    seconds = exchange(path, phase, sizes, uniform(sizes), TRUTH).time
    return Measurement(path, phase, nodes, 8, tokens, hidden, 256, 8, "fp8", 1e6 * seconds * noise)


SETS = {
    "three sizes": ([timed("direct", T) for T in (16, 128, 1024)], {"sigma", "alpha"}),
    "one node": ([timed("hierarchical", T, nodes=1) for T in (16, 128, 1024)], {"sigma", "t0"}),
    "messages": (
        [timed("direct", T, h) for T in (256, 1024, 4096) for h in (128, 7168)],
        {"sigma", "alpha", "tau"},
    ),
    "all": (
        [timed(p, T, h) for p in ("direct", "hierarchical") for T in (64, 512, 4096) for h in (128, 7168)],
        {"sigma", "t0", "alpha", "tau"},
    ),
}


@pytest.mark.parametrize(("measurements", "found"), SETS.values(), ids=SETS)
def test_planted_constants_are_found_and_the_others_stay(measurements, found):
    fit = calibrate(H100, measurements)
    assert fit.largest_error < 1e-6
    for name, figure in fit.topology.figures.items():
        if name in found:
            assert figure.kind == "measured"
            assert figure.value == pytest.approx(PLANTED[name], rel=1e-5)
        else:
            assert figure == H100.figures[name]


def test_noise_of_two_percent_moves_the_rate_by_no_more_than_that():
    noisy = [
        timed("direct", T, noise=1 + 0.02 * (-1) ** i) for i, T in enumerate((128, 512, 1024, 2048, 4096))
    ]
    fit = calibrate(H100, noisy)
    assert fit.topology["sigma"] == pytest.approx(0.7, rel=0.03)
    assert 0 < fit.largest_error < 0.03


@pytest.mark.parametrize(
    ("measurements", "message"),
    [
        (SETS["three sizes"][0][:2], "expected at least 3 measurements, got 2"),
        ([timed("direct", 128)] * 3, "expected times that grow with the size, of different sizes"),
        (
            [Measurement("direct", "dispatch", 4, 8, T, 7168, 256, 8, "fp8", 1e6 / T) for T in (1, 64, 4096)],
            "expected times that grow with the size",
        ),
    ],
    ids=["two", "one size", "falling"],
)
def test_times_that_tell_nothing_are_refused(measurements, message):
    with pytest.raises(ValueError, match=message):
        calibrate(H100, measurements)


def test_times_between_nodes_are_refused_where_there_is_no_link():
    with pytest.raises(ValueError, match="expected one node, as cpu-shm has no link between nodes"):
        calibrate(topology.load("cpu-shm"), SETS["three sizes"][0])


GOOD = asdict(timed("direct", 16))
FILES = {
    "no JSON": ("{", "expected JSON of `moela bench ep --json`, got something else"),
    "another format": ('{"format": 9}', "with format 1, got 9"),
    "a list": ("[]", "with format 1, got list"),
    "no list": ('{"format": 1, "measurements": 3}', "measurements: expected a list of objects"),
    "a field less": (
        json.dumps({"format": 1, "measurements": [{k: v for k, v in GOOD.items() if k != "tokens"}]}),
        "measurements[0]: expected a field 'tokens'",
    ),
    "no time": (
        json.dumps({"format": 1, "measurements": [GOOD, GOOD | {"time_us": 0}]}),
        "measurements[1]: time_us: expected a time above 0, got 0",
    ),
    "a path": (
        json.dumps({"format": 1, "measurements": [GOOD | {"path": "scenic"}]}),
        "measurements[0]: path: expected one of hierarchical, direct, got 'scenic'",
    ),
    "tokens": (
        json.dumps({"format": 1, "measurements": [GOOD | {"tokens": 0}]}),
        "measurements[0]: tokens: expected a whole number from 1, got 0",
    ),
    "too few experts": (
        json.dumps({"format": 1, "measurements": [GOOD | {"experts": 4}]}),
        "measurements[0]: experts: expected at least topk and ranks, got 4",
    ),
}


@pytest.mark.parametrize(("content", "message"), FILES.values(), ids=FILES)
def test_a_file_that_holds_no_measurements_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "m.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"m\.json: ") as refused:
        read(path)
    assert message in str(refused.value)


def test_a_file_is_read_with_fields_that_the_planner_does_not_know(tmp_path):
    path = tmp_path / "m.json"
    path.write_text(json.dumps({"format": 1, "machine": {}, "measurements": [GOOD | {"p90_us": 1}]}))
    assert read(path) == [Measurement(**GOOD)]
