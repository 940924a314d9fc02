"""The CUDA half of hopper.h compiles for sm_90a, without spills, to the instructions that it names."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import machine_code

ROOT = Path(__file__).parents[2]
# compute_90a with code=sm_90a: with -arch=sm_90a nvcc also makes PTX for compute_90, which has no wgmma.
NVCC = ["nvcc", "-std=c++20", "-O3", "-gencode", "arch=compute_90a,code=sm_90a", "-Werror", "all-warnings"]

# Function of hopper.h -> the machine instruction that must appear.
OPCODES = {
    "tma_load": ["UTMALDG.2D", "UTMALDG.3D", "UTMALDG.4D", "UTMALDG.5D"],
    "tma_load_multicast": [f"UTMALDG.{d}D.MULTICAST" for d in (2, 3, 4, 5)],
    "tma_store": ["UTMASTG.2D", "UTMASTG.3D", "UTMASTG.4D", "UTMASTG.5D"],
    "tma_prefetch_map": ["UTMACCTL.PF"],
    "bulk_load": ["UBLKCP.S.G", "UBLKCP.S.G.MULTICAST"],
    "bulk_store": ["UBLKCP.G.S", "UTMACMDFLUSH"],
    "tma_reduce_add": ["UTMAREDG.2D.ADD", "UTMAREDG.3D.ADD", "UTMAREDG.4D.ADD", "UTMAREDG.5D.ADD"],
    "bulk_reduce_add": ["UBLKRED.G.S.ADD.F32.RN", "UBLKRED.G.S.ADD.BF16.RN"],
    "fence_tensor_map": ["UTMACCTL.IV", "ATOMG.E.EXCH.STRONG.GPU"],
    "fence_acq_rel": ["MEMBAR.ALL.GPU", "MEMBAR.ALL.SYS"],
    "ldg_nc_once": ["LDG.E.NA.LTC256B.128.CONSTANT"],
    "bulk_copy_cluster": ["UBLKCP.S.S"],
    "st_async": ["STAS"],
    "fence_proxy_async": ["FENCE.VIEW.ASYNC.S", "FENCE.VIEW.ASYNC.G"],
    "mbarrier_init": ["SYNCS.EXCH.64"],
    "mbarrier_inval": ["SYNCS.CCTL.IV"],
    "mbarrier_arrive": ["SYNCS.ARRIVE.TRANS64.A1T0", "SYNCS.ARRIVE.TRANS64.RED.A1T0"],
    "mbarrier_test_wait": ["SYNCS.PHASECHK.TRANS64"],
    "mbarrier_try_wait": ["SYNCS.PHASECHK.TRANS64.TRYWAIT"],
    "bar": ["BAR.SYNC.DEFER_BLOCKING", "BAR.ARV"],
    "cluster": ["UCGABAR_ARV", "UCGABAR_WAIT"],
    "setmaxnreg": ["USETMAXREG.DEALLOC.CTAPOOL", "USETMAXREG.TRY_ALLOC.CTAPOOL"],
    "griddep": ["ACQBULK", "PREEXIT"],
    "ldmatrix": [f"LDSM.16.M{t}88{n}" for t in ("", "T") for n in ("", ".2", ".4")],
    "stmatrix": [f"STSM.16.M{t}88{n}" for t in ("", "T") for n in ("", ".2", ".4")],
    "flags": ["LDG.E.STRONG.GPU", "LDG.E.64.STRONG.SYS", "STG.E.STRONG.SYS", "REDG.E.ADD.STRONG.SYS",
              "ATOMG.E.ADD.64.STRONG.GPU"],
    "time": ["NANOSLEEP", "CS2R"],
    "ldg": ["LDG.E", "LDG.E.128", "LDG.E.U8", "LDG.E.128.CONSTANT", "STG.E.128"],
    "lds": ["LDS.128", "STS.128", "LDS.U8"],
    "lds_cluster": ["LD.E.128", "ST.E.128"],
    "ex2": ["MUFU.EX2"],
    "redux": ["REDUX.MAX", "REDUX.SUM"],
    "cvt": ["F2FP.SATFINITE.E4M3.F32.PACK_AB_MERGE_C", "F2FP.F16.E4M3.UNPACK_B", "F2FP.BF16.F32.PACK_AB",
            "F2FP.SATFINITE.E5M2.F32.PACK_AB_MERGE_C", "F2FP.F16.E5M2.UNPACK_B"],
    "wgmma_fence": ["WARPGROUP.ARRIVE", "WARPGROUP.DEPBAR.LE"],
    "wgmma_e4m3": [f"QGMMA.64x{n}x32.F32.E4M3.E4M3" for n in range(8, 257, 8)],
    "wgmma_bf16": [f"HGMMA.64x{n}x16.F32.BF16" for n in range(8, 257, 8)],
    "wgmma_f16": [f"HGMMA.64x{n}x16.F32" for n in range(8, 257, 8)],
}  # fmt: skip


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """(what ptxas says, SASS) of tests/sass/hopper_all.cu."""
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    cubin = tmp_path_factory.mktemp("hopper") / "all.cubin"
    command = [*NVCC, "-I", "csrc", "-Xptxas", "-v", "-cubin", "tests/sass/hopper_all.cu", "-o", cubin]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr, cubin


@pytest.fixture(scope="module")
def listing(compiled):
    if (nvdisasm := machine_code.bundled("nvdisasm")) is None:
        pytest.skip("Triton's wheel brings no nvdisasm here")
    return subprocess.run([nvdisasm, "-c", compiled[1]], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def opcodes(listing):
    return machine_code.opcodes_of_sass(listing)


def test_everything_compiles_without_a_complaint_or_a_spill(compiled):
    said, _ = compiled
    assert re.findall(r"\(C75\d\d\).*", said) == []  # ptxas on wgmma: serialised, or a fence injected
    spills = set(
        re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", said)
    )
    assert spills == {("0", "0", "0")}


@pytest.mark.parametrize("function", OPCODES)
def test_a_function_is_its_instruction(opcodes, function):
    assert [opcode for opcode in OPCODES[function] if opcodes[opcode] == 0] == []


def test_a_cache_hint_is_an_operand(listing):
    hinted = re.findall(r"(UTMALDG\.\dD(?:\.MULTICAST)?|UBLKCP\.S\.G) [^;]*desc\[", listing)
    loads = [f"UTMALDG.{d}D{m}" for d in (2, 3, 4, 5) for m in ("", ".MULTICAST")]
    assert sorted(set(hinted)) == sorted(["UBLKCP.S.G", *loads])


def test_no_wgmma_is_lost(opcodes):
    for n in range(8, 257, 8):
        assert opcodes[f"QGMMA.64x{n}x32.F32.E4M3.E4M3"] == 2
        assert opcodes[f"HGMMA.64x{n}x16.F32.BF16"] == opcodes[f"HGMMA.64x{n}x16.F32"] == 4
