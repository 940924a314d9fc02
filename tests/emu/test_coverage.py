"""Every function of hopper.h is emulated, compiled for sm_90a, and in the conformance program."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PTX = ROOT / "csrc" / "cuda" / "hopper" / "ptx"
# Tells the compiler where registers are touched; inside wgmma_fence and wgmma_wait.
NOT_AN_INSTRUCTION = {"pin"}
# Called through these functions of waits.h.
INSIDE = {
    "ld_acquire": "wait_flag_at_least",
    "mbarrier_try_wait": "mbarrier_wait",
    "mbarrier_try_wait_cluster": "mbarrier_wait_cluster",
    "cluster_arrive": "cluster_sync",
}


def text_of(*patterns: str) -> str:
    return "\n".join(path.read_text() for pattern in patterns for path in sorted(ROOT.glob(pattern)))


def functions() -> list[str]:
    text = "".join(path.read_text() for path in sorted(PTX.glob("*.h")) if path.name != "wgmma_registers.h")
    text = re.sub(r"#define MOELA_DEFINE_WGMMA.*?\n\n", "", text, flags=re.S)  # bodies of wgmma_*
    names = set(re.findall(r"^MOELA_DEVICE (?:[\w:]+ )+(\w+)\(", text, flags=re.M))
    return sorted(names - NOT_AN_INSTRUCTION)


def calls(name: str, text: str) -> bool:
    return re.search(rf"\b{name}\b(?:<[^;(]*>)?\(", text) is not None


@pytest.mark.parametrize("name", functions())
def test_a_function_is_emulated_compiled_and_judged(name):
    assert calls(name, text_of("csrc/emu/hopper_*.h")), "no emulation"
    outside = INSIDE.get(name, name)
    assert calls(outside, text_of("tests/sass/hopper_all.cu")), "not in tests/sass/hopper_all.cu"
    assert calls(outside, text_of("tests/conform/*.h")), "not in the conformance program"


def test_functions_are_found():
    assert {"tma_load_5d", "wgmma_e4m3_rs", "setmaxnreg_inc", "ldmatrix", "mapa"} < set(functions())
