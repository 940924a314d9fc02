"""Clocks and shadow memory against plain models, and a run of the size of an all-to-all."""

import native
import pytest


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("part", ["clock", "shadow"])
def test_it_agrees_with_a_plain_model_on_random_histories(part, seed):
    assert native.run(native.program("tests/emu/model.cpp"), part, str(seed)) == "right"


@pytest.mark.parametrize("schedule", native.SCHEDULES)
def test_eight_ranks_of_four_blocks_exchange(schedule):
    """12 288 threads: dense clocks would take 600 MB."""
    assert native.run(native.program("tests/emu/scale.cpp"), schedule) == "right"
