"""The CUDA mla_schedule, run on the host: the integers of the definition, without a race."""

import gemm
import native
import pytest
import torch
from moela.ops import SPECS
from moela.reference import mla_schedule as reference
from torch import Tensor

SPEC = SPECS["mla_schedule"]
# More requests than the block has threads, none, empty ones, lengths that overflow 32 bits when summed up.
CASES = (
    *SPEC.cases,
    {"B": 513, "S": 100, "num_parts": 7},
    {"B": 600, "S": 5000, "rows": 3, "num_parts": 40, "batch_invariant": True},
    {"B": 1, "S": 100000, "rows": 16, "num_parts": 1000, "hostile": False},
    {"B": 40, "S": 3000, "num_parts": 40, "rows": 7},
)


def run(folder, x: dict, schedule: str = "lazy", program=None) -> Tensor:
    gemm.write(folder / "seqlens", x["seqlens"])
    args = (x["seqlens"].numel(), x["rows"], x["num_parts"], int(x["batch_invariant"]), schedule, folder)
    verdict = native.run(program or native.program("tests/emu/mla_schedule.cpp"), *map(str, args))
    assert verdict == "right", verdict
    return gemm.read(folder / "schedule", torch.int32, -1, 4)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_is_the_definition(tmp_path, case):
    x = SPEC.make_inputs(**case)
    assert torch.equal(run(tmp_path, x), reference(**x))


@pytest.mark.parametrize("schedule", native.SCHEDULES)
@pytest.mark.parametrize("batch_invariant", [False, True])
def test_is_the_definition_under_every_schedule_of_threads(tmp_path, batch_invariant, schedule):
    x = SPEC.make_inputs(B=70, S=3000, num_parts=50, batch_invariant=batch_invariant)
    assert torch.equal(run(tmp_path, x, schedule), reference(**x))


@pytest.mark.parametrize("seed", range(20))
def test_is_the_definition_of_any_lengths(tmp_path, seed):
    g = torch.Generator().manual_seed(seed)
    B, rows, num_parts, S = (int(torch.randint(1, most, (1,), generator=g)) for most in (99, 300, 140, 9000))
    x = SPEC.make_inputs(B=B, S=S if seed % 2 else S // 50, rows=rows, num_parts=num_parts, seed=seed)
    for batch_invariant in (False, True):
        y = x | {"batch_invariant": batch_invariant}
        assert torch.equal(run(tmp_path, y), reference(**y))


def test_a_barrier_that_is_missing_is_found_out(tmp_path):
    line = "  sync_block();  // who reuses the scratch waits until all have read it\n"
    program = native.program_without(line, "cuda/block/scan.cuh", "tests/emu/mla_schedule.cpp")
    with pytest.raises(AssertionError, match="race:"):
        run(tmp_path, SPEC.make_inputs(B=70), program=program)
