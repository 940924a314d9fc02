"""The machine code of libmoela_cuda.so, read without a GPU."""

import importlib.util
import os
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import machine_code
import pytest
from moela import backends

_plan = pytest.importorskip("moela._plan", reason="moela._plan was not built for this Python")
TILES = _plan.GEMM_SM90_TILES
opcodes_of = cache(machine_code.opcodes_of_sass)
# By kernel: three input types; those with a kernel for aligned rows; the tiles, of which those that are not
# swapped store by TMA or from registers; two types of three widths, which have two widths of values.
KERNELS = {
    "per_token_group_quant_fp8": 3,
    "silu_and_mul_quant_fp8": 6,
    "fp8_gemm": sum(1 if tile.swaps else 2 for tile in TILES),
    "grouped_fp8_gemm": sum(1 if tile.swaps else 2 for tile in TILES),
    "mla_decode": 6,
    "mla_decode_bytes": 2,
    "mla_decode_few": 8,
    "mla_decode_seesaw": 4,
    "mla_merge": 4,
    "mla_schedule": 1,
    "mla_sparse": 8,
    "mla_sparse_merge": 4,
    "mla_tiles": 1,
    # What is added up has three types, of rows that are aligned and not.
    "ep_send": 1,
    "ep_place": 1,
    "ep_receive": 1,
    "ep_combine_send": 6,
    "ep_combine_receive": 6,
}


def usage(text: str) -> dict[str, dict[str, int]]:
    """`cuobjdump --dump-resource-usage` by function."""
    found = re.findall(r"Function (\S+):\s+(REG:.+)", text)
    return {
        name: {k: int(v) for k, v in re.findall(r"(REG|STACK|LOCAL):(\d+)", line)} for name, line in found
    }


def functions(text: str) -> dict[str, str]:
    """`cuobjdump --dump-sass` by function, without the encodings, which are nine tenths of it."""
    _, *parts = re.split(r"Function : (\S+)\n", re.sub(r"\s*/\* 0x[0-9a-f]{16} \*/", "", text))
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.fixture(scope="module")
def cuobjdump():
    """(flags) -> what cuobjdump says of the library."""
    library = backends.library("cuda")
    reason = None
    if not library.path.exists():
        reason = library.error
    elif importlib.util.find_spec("triton") is None or not machine_code.bundled("cuobjdump"):
        reason = "cuobjdump, which comes with triton, is not installed"
    if reason and "cuda" in os.environ.get("MOELA_TEST_REQUIRE", "").split(","):
        pytest.fail(f"MOELA_TEST_REQUIRE asks for cuda, but {reason}", pytrace=False)
    if reason:
        pytest.skip(reason)

    def run(*flags: str, path: Path = library.path) -> str:
        command = [machine_code.bundled("cuobjdump"), *flags, path]
        # It looks for nvdisasm on PATH.
        env = os.environ | {"PATH": f"{command[0].parent}{os.pathsep}{os.environ['PATH']}"}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout

    return run


@pytest.fixture(scope="module")
def sass(cuobjdump):
    return functions(cuobjdump("--dump-sass"))


def test_the_code_is_for_hopper_only(cuobjdump):
    """wgmma, setmaxnreg and TMA multicast exist on sm_90a alone; other devices run the Triton kernels."""
    assert set(re.findall(r"\bsm_\w+?(?=\.cubin)", cuobjdump("--list-elf"))) == {"sm_90a"}
    assert set(re.findall(r"\bsm_\w+?(?=\.ptx)", cuobjdump("--list-ptx"))) <= {"sm_90a"}


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_is_there(sass, kernel):
    found = [name for name in sass if re.search(rf"(?<!grouped_){kernel}_kernel", name)]
    assert len(found) == KERNELS[kernel]


def test_nothing_is_spilled(cuobjdump, sass):
    found = usage(cuobjdump("--dump-resource-usage"))
    assert found.keys() == sass.keys()
    assert {name: u for name, u in found.items() if u["STACK"] or u["LOCAL"]} == {}


def test_nothing_is_computed_in_float64(sass):
    for name, listing in sass.items():
        assert machine_code.float64_opcodes(opcodes_of(listing)) == set(), name


def test_casts_use_the_saturating_e4m3_instruction(sass):
    for name, listing in sass.items():
        if "_quant_fp8_kernel" in name:
            opcodes = opcodes_of(listing)
            assert any(o.startswith("F2FP.SATFINITE.E4M3") for o in opcodes), name


def gemms(sass: dict[str, str]) -> Iterator[tuple[_plan.GemmSm90Tile, bool, str]]:
    """(tile, whether it stores by TMA, listing) of the kernels of fp8_gemm and grouped_fp8_gemm."""
    for name, listing in sass.items():
        if found := re.search(r"fp8_gemm_kernelI.*GemmConfigILi(\d+)EEELb([01])E", name):
            yield TILES[int(found[1])], found[2] == "1", listing


def count(listing: str, prefix: str) -> int:
    return sum(n for o, n in opcodes_of(listing).items() if o.startswith(prefix))


def test_an_fp8_gemm_multiplies_on_the_tensor_core_and_promotes_outside_it(sass):
    """A step begins in four places, with four products, and ends in five, with one multiply-add per sum."""
    for tile, _, listing in gemms(sass):
        opcodes = opcodes_of(listing)
        products = {o: n for o, n in opcodes.items() if "GMMA" in o}
        assert products == {f"QGMMA.64x{tile.block_right}x32.F32.E4M3.E4M3": 4 * 4}, tile
        assert opcodes["FFMA"] == 5 * tile.block_right // 2, tile


def test_an_fp8_gemm_has_the_products_of_two_steps_under_way(sass):
    """The loop's two waits and that behind it leave one step; the two for the last step leave none. Where
    ptxas serialises products, it waits for none to be left after each."""
    for tile, _, listing in gemms(sass):
        waits = re.findall(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x(\d)", listing)
        assert sorted(waits) == ["0", "0", "1", "1", "1"], tile


def test_an_fp8_gemm_loads_by_tma_and_shares_one_operand_in_a_cluster(sass):
    for tile, _, listing in gemms(sass):
        assert count(listing, "UTMALDG.3D") == 2, tile
        assert count(listing, "UTMALDG.3D.MULTICAST") == (tile.cluster > 1), tile


def test_an_fp8_gemm_stores_by_tma_where_it_can(sass):
    for tile, by_tma, listing in gemms(sass):
        assert (count(listing, "UTMASTG") > 0) == by_tma, tile
        assert (count(listing, "STSM") > 0) == by_tma, tile
        assert not (by_tma and tile.swaps), tile


def test_an_fp8_gemm_moves_registers_to_the_warpgroups_that_multiply(sass):
    for tile, _, listing in gemms(sass):
        assert count(listing, "USETMAXREG") == (0 if tile.swaps else 2), tile


def test_an_fp8_gemm_stays_within_the_registers_that_it_gives_each_role(sass):
    """ptxas says 168 for the kernel. What loads lies between the DEALLOC and the next EXIT."""
    for tile, _, listing in gemms(sass):
        if tile.swaps:
            continue
        loads = re.search(r"USETMAXREG\.DEALLOC\.CTAPOOL 0x28.*?\bEXIT\b", listing, re.S)[0]
        assert "UTMALDG" in loads, tile
        for code, most in ((listing, 232), (loads, 40)):
            assert max(int(r) for r in re.findall(r"\bR(\d+)\b", code)) < most, tile


def mla_decodes(sass: dict[str, str], path: str = "") -> Iterator[tuple[int, int, str, str]]:
    """(D, v_dim, type, listing) of the kernels of mla_decode."""
    pattern = rf"mla_decode{path}_kernel.*Mla\w*ConfigILi(\d+)ELi(\d+)E\w*MlaFloatE([01])E"
    for name, listing in sass.items():
        if found := re.search(pattern, name):
            yield int(found[1]), int(found[2]), ("BF16", "F16")[int(found[3])], listing


def test_mla_decode_multiplies_on_the_tensor_core_only(sass):
    """Queries and keys once, each half of the values once; float16's is the opcode without a type."""
    for D, v_dim, dtype, listing in mla_decodes(sass):
        products = {o: n for o, n in opcodes_of(listing).items() if "GMMA" in o}
        suffix = ".BF16" if dtype == "BF16" else ""
        assert products == {
            f"HGMMA.64x64x16.F32{suffix}": D // 16,
            f"HGMMA.64x{v_dim // 2}x16.F32{suffix}": 2 * 4,
        }, (D, v_dim, dtype)
        assert not any(o.startswith("HMMA") for o in opcodes_of(listing))


def test_mla_decode_waits_for_its_products_three_times(sass):
    """Where ptxas serialises products, it waits after each."""
    for D, v_dim, dtype, listing in mla_decodes(sass):
        waits = re.findall(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x(\d)", listing)
        assert waits == ["0"] * 3, (D, v_dim, dtype)


def test_mla_decode_loads_by_tma_and_writes_weights_as_matrices(sass):
    for D, v_dim, dtype, listing in mla_decodes(sass):
        assert count(listing, "UTMALDG.4D") > 0, (D, v_dim, dtype)
        assert count(listing, "UTMALDG.3D") > 0, (D, v_dim, dtype)
        assert count(listing, "STSM.16.M88.4") == 4, (D, v_dim, dtype)
        assert count(listing, "MUFU.EX2") == 32 + 2, (D, v_dim, dtype)


def registers_of_roles(listing: str) -> list[tuple[int, int]]:
    """(registers that it is given, the last that it uses) of each role, from its SETMAXREG to an EXIT or the
    next one."""
    pattern = r"USETMAXREG\.\w+\.CTAPOOL (?:UP0, )?0x(\w+) (.*?)(?=USETMAXREG|\bEXIT\b)"
    roles = re.findall(pattern, listing, re.S)
    return [(int(n, 16), max(int(r) for r in re.findall(r"\bR(\d+)\b", code))) for n, code in roles]


def test_mla_decode_stays_within_the_registers_that_it_gives_each_role(sass):
    """ptxas says 168 for the kernel. Right values, then scores and left values, then what loads."""
    for *kind, listing in (*mla_decodes(sass), *mla_decodes(sass, "_seesaw")):
        roles = registers_of_roles(listing)
        assert [given for given, _ in roles] == [216, 216, 72], kind
        assert all(used < given for given, used in roles), (kind, roles)


def test_the_seesaw_multiplies_values_while_scores_are_under_way(sass):
    """Both warpgroups: the scores of a piece's first block, and of others beside the values of the block
    before: one wait leaves these under way. Where ptxas serialises products, it waits after each."""
    for D, v_dim, dtype, listing in mla_decodes(sass, "_seesaw"):
        products = {o: n for o, n in opcodes_of(listing).items() if "GMMA" in o}
        suffix = ".BF16" if dtype == "BF16" else ""
        assert products == {
            f"HGMMA.64x64x16.F32{suffix}": 2 * 2 * D // 16,
            f"HGMMA.64x{v_dim // 2}x16.F32{suffix}": 2 * 4 * 4,
        }, (D, v_dim, dtype)
        waits = re.findall(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x(\d)", listing)
        assert waits == ["0", "0", "0", "1", "0", "0", "0"] * 2, (D, v_dim, dtype)
        assert count(listing, "UTMALDG.3D") > 0, (D, v_dim, dtype)


def mla_bytes(sass: dict[str, str]) -> Iterator[tuple[int, str]]:
    """(D, listing) of the kernels of mla_decode for caches of bytes."""
    for name, listing in sass.items():
        if found := re.search(r"mla_decode_bytes_kernel.*MlaBytesConfigILi(\d+)E", name):
            yield int(found[1]), listing


def test_mla_decode_of_bytes_multiplies_as_that_of_bfloat16_does(sass):
    for D, listing in mla_bytes(sass):
        products = {o: n for o, n in opcodes_of(listing).items() if "GMMA" in o}
        assert products == {"HGMMA.64x64x16.F32.BF16": D // 16, "HGMMA.64x256x16.F32.BF16": 2 * 4}, D
        assert re.findall(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x(\d)", listing) == ["0"] * 3, D


def test_mla_decode_of_bytes_converts_codes_by_moving_bits(sass):
    for D, listing in mla_bytes(sass):
        assert machine_code.fp8_opcodes(opcodes_of(listing)) == set(), D
        assert count(listing, "STS.128") >= 2 * D // 64, D


def test_mla_decode_of_bytes_stays_within_the_registers_that_it_gives_each_role(sass):
    """Right values keep the 168 that the kernel begins with."""
    for D, listing in mla_bytes(sass):
        roles = registers_of_roles(listing)
        assert [given for given, _ in roles] == [192, 144], D
        assert all(used < given for given, used in roles), (D, roles)


def mla_few(sass: dict[str, str]) -> Iterator[tuple[int, int, str, bool, str]]:
    """(D, v_dim, type, whether rows are bytes, listing) of the kernels of mla_decode for few rows."""
    floats = r"MlaFewConfigILi(?P<D>\d+)ELi(?P<V>\d+)E\w*MlaFloatE(?P<type>[01])E"
    for name, listing in sass.items():
        if found := re.search(
            rf"mla_decode_few_kernel.*(?:{floats}|MlaFewBytesConfigILi(?P<bytes>\d+)E)", name
        ):
            is_bytes = found["bytes"] is not None
            dtype = "F16" if found["type"] == "1" else "BF16"
            yield int(found["D"] or found["bytes"]), int(found["V"] or 512), dtype, is_bytes, listing


def test_mla_decode_of_few_rows_has_them_as_the_right_operand(sass):
    """Keys once, 64 columns of the values at a time; two waits, and not one for each product."""
    for D, v_dim, dtype, *kind, listing in mla_few(sass):
        products = {o: n for o, n in opcodes_of(listing).items() if "GMMA" in o}
        suffix = ".BF16" if dtype == "BF16" else ""
        assert products == {f"HGMMA.64x16x16.F32{suffix}": D // 16 + v_dim // 64 * 4}, (D, v_dim, dtype, kind)
        assert listing.count(".tnspA") == v_dim // 64 * 4, (D, v_dim, dtype, kind)
        waits = re.findall(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x(\d)", listing)
        assert waits == ["0"] * 2, (D, v_dim, dtype, kind)


def test_mla_decode_of_few_rows_transposes_weights_and_results_as_matrices(sass):
    """And has one exponential for a weight, of which a thread has eight, and one for each of four rows."""
    for D, v_dim, dtype, *kind, listing in mla_few(sass):
        assert count(listing, "STSM.16.MT88.4") == 1 + v_dim // 64, (D, v_dim, dtype, kind)
        assert count(listing, "MUFU.EX2") == 8 + 4, (D, v_dim, dtype, kind)
        assert count(listing, "UTMALDG.4D") > 0, (D, v_dim, dtype, kind)


def test_mla_decode_of_few_rows_stays_within_the_registers_that_it_gives_each_role(sass):
    """Of bytes what loads, then what multiplies; of floats nothing is moved."""
    for *kind, is_bytes, listing in mla_few(sass):
        roles = registers_of_roles(listing)
        assert [given for given, _ in roles] == ([176, 152] if is_bytes else []), kind
        assert all(used < given for given, used in roles), (kind, roles)


def mla_sparses(sass: dict[str, str]) -> Iterator[tuple[int, int, str, bool, str]]:
    """(D, v_dim, type, whether rows are bytes, listing) of the kernels of mla_sparse."""
    pattern = r"mla_sparse_kernel.*MlaSparseConfigILi(\d+)ELi(\d+)E\w*MlaFloatE([01])ELb([01])E"
    for name, listing in sass.items():
        if found := re.search(pattern, name):
            dtype, is_bytes = ("BF16", "F16")[int(found[3])], found[4] == "1"
            yield int(found[1]), int(found[2]), dtype, is_bytes, listing


def test_mla_sparse_multiplies_as_mla_decode_does(sass):
    for D, v_dim, dtype, *kind, listing in mla_sparses(sass):
        products = {o: n for o, n in opcodes_of(listing).items() if "GMMA" in o}
        suffix = ".BF16" if dtype == "BF16" else ""
        assert products == {
            f"HGMMA.64x64x16.F32{suffix}": D // 16,
            f"HGMMA.64x{v_dim // 2}x16.F32{suffix}": 2 * 4,
        }, (D, v_dim, dtype, kind)
        waits = re.findall(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x(\d)", listing)
        assert waits == ["0"] * 3, (D, v_dim, dtype, kind)


def test_mla_sparse_gathers_rows_16_bytes_at_a_time(sass):
    """Of two steps of four rows, a panel of 64 columns is a store or two; queries come by TMA."""
    for D, v_dim, dtype, *kind, listing in mla_sparses(sass):
        assert count(listing, "STS.128") == 2 * D // 64, (D, v_dim, dtype, kind)
        assert count(listing, "LDG.E.128") > 0, (D, v_dim, dtype, kind)
        assert count(listing, "UTMALDG.3D") > 0, (D, v_dim, dtype, kind)
        assert count(listing, "STSM.16.M88.4") == 4, (D, v_dim, dtype, kind)


def test_mla_sparse_converts_codes_by_moving_bits(sass):
    """No conversion instruction for e4m3: two products and half a rounding to bfloat16 of each of 4 x 32."""
    by_kind = {}
    for D, v_dim, dtype, is_bytes, listing in mla_sparses(sass):
        assert machine_code.fp8_opcodes(opcodes_of(listing)) == set(), (D, v_dim, dtype)
        by_kind[D, v_dim, dtype, is_bytes] = count(listing, "FMUL"), count(listing, "F2FP.BF16")
    for D in (576, 512):
        fmuls, roundings = zip(by_kind[D, 512, "BF16", True], by_kind[D, 512, "BF16", False], strict=True)
        assert fmuls[0] - fmuls[1] == 2 * 4 * 32, D
        assert roundings[0] - roundings[1] == 4 * 32 // 2, D


def test_mla_sparse_stays_within_the_registers_that_it_gives_each_role(sass):
    """Right values, then scores and left values, then rows."""
    for *kind, listing in mla_sparses(sass):
        roles = registers_of_roles(listing)
        assert [given for given, _ in roles] == [160, 192, 152], kind
        assert all(used < given for given, used in roles), (kind, roles)


# --- the readers find what they are for ------------------------------------------------------------------

USAGE = """
 Common:
  GLOBAL:0
 Function _a:
  REG:32 STACK:8 SHARED:0 LOCAL:4 CONSTANT[0]:600 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function _b:
  REG:64 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:600 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
LISTING = """
	code for sm_90a
		Function : _a
        /*0000*/                   DADD R2, R2, R4 ;    /* 0x00005d00ff047b82 */
		Function : _b
        /*0000*/                   FADD R2, R2, R4 ;    /* 0x00005d00ff047b82 */
"""


def test_usage_and_code_are_told_apart_by_function():
    assert usage(USAGE) == {
        "_a": {"REG": 32, "STACK": 8, "LOCAL": 4},
        "_b": {"REG": 64, "STACK": 0, "LOCAL": 0},
    }
    found = {name: opcodes_of(listing) for name, listing in functions(LISTING).items()}
    assert found == {"_a": {"DADD": 1}, "_b": {"FADD": 1}}
