"""The primitives of hopper.h do what the golden data say: emulated, and in dumps of real devices."""

from functools import cache
from pathlib import Path

import judge
import native
import pytest

HERE = Path(__file__).parent
DEVICES = sorted(folder.name for folder in HERE.glob("h100-*"))


@pytest.fixture(scope="module")
def dumps(tmp_path_factory):
    """Schedule -> the folder of its dumps."""

    @cache
    def run(schedule: str) -> Path:
        folder = tmp_path_factory.mktemp(schedule)
        judge.prepare(folder)
        # The program of test_mutants.py, without a mutant: one that takes half a minute to compile.
        native.run(native.program("tests/conform/conform.cpp", "-DEMU_MUTATE"), folder, schedule)
        return folder

    return run


@pytest.mark.parametrize("schedule", ["eager", "lazy", "1"])
@pytest.mark.parametrize("name", judge.CHECKS)
def test_under_the_emulator(dumps, name, schedule):
    judge.CHECKS[name](dumps(schedule))


@pytest.mark.parametrize("device", DEVICES or [pytest.param("h100-", marks=pytest.mark.skip("no dumps yet"))])
@pytest.mark.parametrize("name", judge.CHECKS)
def test_on_a_device(device, name):
    judge.CHECKS[name](HERE / device)
