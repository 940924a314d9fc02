"""What a call is said to take."""

import sys

import pytest
import torch
from moela.bench.memory import Extra

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
MB = 1 << 20
NOISE = 32 * MB  # what others in this process may take or give back meanwhile


def written(megabytes: int) -> torch.Tensor:
    return torch.ones(megabytes * MB, dtype=torch.uint8)


def test_memory_that_is_free_again_at_the_end_counts():
    def call():
        scratch = written(128)
        return int(scratch[0])

    extra = Extra(call, None, torch.device("cpu"))
    assert extra() == 1
    assert abs(extra.bytes - 128 * MB) < NOISE


def test_the_peak_counts_not_the_sum():
    def call():
        for _ in range(3):
            written(128)
        return written(64)

    extra = Extra(call, None, torch.device("cpu"))
    assert len(extra()) == 64 * MB
    assert abs(extra.bytes - 128 * MB) < NOISE


def test_what_the_warm_call_and_the_inputs_take_does_not_count():
    inputs, kept = written(128), []
    extra = Extra(lambda: inputs.view(-1), lambda: kept.append(written(128)), torch.device("cpu"))
    extra()
    assert len(kept) == 1
    assert extra.bytes < NOISE


def test_a_call_that_was_not_made_has_no_memory():
    assert Extra(lambda: None, None, torch.device("cpu")).bytes is None
