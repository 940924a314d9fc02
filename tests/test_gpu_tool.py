"""tools/gpu.py: every step has its say, whatever the others do, and what there is survives being cut off."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("gpu", ROOT / "tools" / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def states(outcomes) -> dict[str, str]:
    return {o.name: o.state for o in outcomes}


def test_a_step_that_fails_does_not_stop_the_next(gpu, tmp_path):
    steps = [gpu.Step("bad", "echo said; exit 3", 9), gpu.Step("good", "echo {out}", 9)]
    assert states(gpu.run_all(steps, tmp_path, 99)) == {"bad": "failed", "good": "passed"}
    assert (tmp_path / "bad.log").read_text() == "said\n"
    assert (tmp_path / "good.log").read_text() == f"{tmp_path}\n"


def test_a_step_ends_at_its_time_with_all_that_it_started(gpu, tmp_path):
    steps = [
        gpu.Step("slow", "echo begun; sleep 1000 & wait; touch {out}/after", 1),
        gpu.Step("next", "true", 9),
    ]
    assert states(gpu.run_all(steps, tmp_path, 99)) == {"slow": "out of time", "next": "passed"}
    assert (tmp_path / "slow.log").read_text() == "begun\n"
    assert not (tmp_path / "after").exists()


def test_what_is_past_the_end_of_the_time_is_not_reached_and_says_so(gpu, tmp_path):
    steps = [gpu.Step("first", "sleep 1000", 500), gpu.Step("second", "true", 9)]
    assert states(gpu.run_all(steps, tmp_path, 2)) == {"first": "out of time", "second": "not reached"}
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [s["state"] for s in summary] == ["out of time", "not reached"]


def test_the_summary_is_there_after_every_step(gpu, tmp_path):
    steps = [gpu.Step("one", "true", 9), gpu.Step("two", "cp {out}/summary.json {out}/seen.json", 9)]
    gpu.run_all(steps, tmp_path, 99)
    assert [s["state"] for s in json.loads((tmp_path / "seen.json").read_text())] == ["passed", "not reached"]


def test_conformance_comes_before_everything_that_stands_on_it(gpu):
    names = [step.name for step in gpu.STEPS]
    assert names.index("conform") < names.index("build") < names.index("tests-cuda") < names.index("bench")
    for step in gpu.STEPS:
        assert step.command.format(out="out")
