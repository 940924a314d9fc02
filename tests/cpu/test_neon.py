"""The NEON kernels, cross-compiled and run in qemu: the bits of the scalar kernels, there and here."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CROSS, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
OPTIONS = ["-std=c++20", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-I", "csrc"]


def build(compiler: str, out: Path, *options: str) -> Path:
    command = [compiler, *OPTIONS, *options, "tests/cpu/bits.cpp", "csrc/cpu/isa_scalar.cpp", "-o", out]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    return out


def bits(*command: str | Path) -> dict[str, dict[str, str]]:
    """Instruction set -> case -> hash."""
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, dict[str, str]] = {}
    for isa, case, value in map(str.split, printed.splitlines()):
        found.setdefault(isa, {})[case] = value
    return found


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    for tool in (CROSS, EMULATOR):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed; on Debian: apt install g++-aarch64-linux-gnu qemu-user")
    program = build(
        CROSS,
        tmp_path_factory.mktemp("neon") / "bits",
        "-static",
        "-DMOELA_ISA_neon",
        "csrc/cpu/isa_neon.cpp",
    )
    return bits(EMULATOR, program)


def differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    assert one.keys() == other.keys()
    return [case for case in one if one[case] != other[case]]


def test_neon_has_the_bits_of_the_scalar_kernels(emulated):
    assert len(emulated["scalar"]) > 80
    assert differing(emulated["scalar"], emulated["neon"]) == []


def test_the_scalar_kernels_have_the_same_bits_on_both_machines(emulated, tmp_path):
    here = bits(build(shutil.which("c++") or "g++", tmp_path / "bits"))
    assert differing(here["scalar"], emulated["scalar"]) == []
