"""The emulator with one formula changed is found out by the golden data: the judge has teeth."""

import sys
from pathlib import Path

import native
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "conform"))

import judge

# Mutant, as numbered in csrc/emu by EMU_MUTANT -> a check that fails, or None where the run itself stops.
MUTANTS = {
    "parity has the other sense": (1, "an_mbarrier_counts_phases"),
    "the 64-byte swizzle permutes like the 128-byte one": (2, "tma_loads_permute_chunks_as_the_layouts_say"),
    "the swizzle takes its bits one higher": (3, "tma_loads_permute_chunks_as_the_layouts_say"),
    "leading and stride offset change places": (4, "wgmma_reads_every_layout_through_its_golden_descriptor"),
    "without swizzle MN-major offsets do not swap": (
        5,
        "wgmma_reads_every_layout_through_its_golden_descriptor",
    ),
    "accumulator registers 1 and 2 change places": (6, "wgmma_bf16_accumulates_in_the_right_registers"),
    "halves of K and of rows change places in A registers": (7, "wgmma_bf16_takes_a_from_registers"),
    "matrices are transposed the wrong way round": (8, "matrices_have_the_golden_fragments"),
    "outside the tensor is not zero": (9, "tma_loads_give_zeros_outside_the_tensor"),
    "the accumulator keeps 9 bits": (10, "wgmma_e4m3_accumulates_in_the_right_registers"),
    "e4m3 saturates to NaN": (11, "floats_convert_to_e4m3_as_the_golden_vectors"),
    "e4m3 has another bias": (12, "floats_convert_to_e4m3_as_the_golden_vectors"),
    "e5m2 saturates to infinity": (13, "floats_convert_to_e5m2_as_the_golden_vectors"),
    "subnormal powers of two are kept": (14, "powers_of_two_are_as_exact_as_documented"),
    "a reduction replaces": (15, "tma_adds_boxes_of_every_rank"),
    "an edit sets the stride of the next dimension": (16, "copies_follow_an_edited_tensor_map"),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    judge.prepare(folder)
    return folder / "in"


def part_of(check: str) -> str:
    """What dumps that which the check judges: the part of conform.cpp with the name of its module."""
    return judge.CHECKS[check].__module__.removeprefix("judge_")


def dumps_of(mutant: int, part: str, folder: Path, inputs: Path) -> Path:
    (folder / "in").symlink_to(inputs)
    program = native.program("tests/conform/conform.cpp", "-DEMU_MUTATE")
    native.run_any(program, folder, "lazy", str(mutant), part)
    return folder


@pytest.mark.parametrize("name", MUTANTS)
def test_golden_data_kill_the_mutant(tmp_path, inputs, name):
    number, killer = MUTANTS[name]
    assert killer in judge.failures(dumps_of(number, part_of(killer), tmp_path, inputs), [killer])


@pytest.mark.parametrize("part", sorted({part_of(killer) for _, killer in MUTANTS.values()}))
def test_without_a_mutant_the_killers_pass(tmp_path, inputs, part):
    """On the dumps of one part; tests/conform/test_conform.py has the same program's dumps of all."""
    killers = {killer for _, killer in MUTANTS.values() if part_of(killer) == part}
    assert judge.failures(dumps_of(0, part, tmp_path, inputs), killers) == {}
