"""Prepares the inputs of the conformance program and judges its dumps against tests/golden.

    python tests/conform/judge.py prepare FOLDER
    python tests/conform/judge.py check FOLDER

Needs numpy only. Every check is a function whose name says what holds; it takes the folder of the dumps.
"""

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parents[1] / "golden"
CHECKS: dict[str, Callable[[Path], None]] = {}
SPANS = {"NONE": 16, "SW32": 32, "SW64": 64, "SW128": 128}


@cache
def golden(name: str) -> dict:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def check(function: Callable[[Path], None]) -> Callable[[Path], None]:
    CHECKS[function.__name__] = function
    return function


def dump(folder: Path, name: str, dtype: type = np.uint8) -> np.ndarray:
    return np.fromfile(folder / f"{name}.bin", dtype)


def equal(got: np.ndarray, expected: np.ndarray) -> None:
    expected = np.asarray(expected)
    assert got.shape == expected.shape, f"shape {got.shape}, expected {expected.shape}"
    wrong = np.argwhere(got != expected)
    if len(wrong):
        at = tuple(wrong[0])
        raise AssertionError(
            f"{len(wrong)} of {got.size} differ; first at {at}: {got[at]}, not {expected[at]}"
        )


# --- TMA -------------------------------------------------------------------------------------------------


def tensor(y: int, x: int) -> int:
    """Byte (y, x) of the [128, 256] tensor of the swizzle tests."""
    return (y * 256 + x) % 251


def offset(swizzle: int, row: int, byte: int) -> int:
    """Where byte `byte` of row `row` of a box lies, from the atoms of the golden data."""
    if swizzle == 0:
        return row * 64 + byte
    atom = golden("smem_layout")["atoms"][f"K_SW{swizzle}_1B"]["offset"]
    return row // 8 * 8 * swizzle + atom[row % 8][byte]


def filled(count: int) -> np.ndarray:
    """The source of every store, see fill_smem()."""
    i = np.arange(count // 4, dtype=np.uint32)
    return (0x01010101 * (i & 63) + 0x00800000 * (i >> 6 & 1)).astype(np.uint32).view(np.uint8)


@check
def tma_loads_permute_chunks_as_the_layouts_say(folder: Path) -> None:
    for swizzle in (0, 32, 64, 128):
        width = swizzle or 64
        expected = np.zeros(64 * width, np.uint8)
        for row in range(64):
            for byte in range(width):
                expected[offset(swizzle, row, byte)] = tensor(3 + row, 16 + byte)
        equal(dump(folder, f"tma_load_{swizzle}"), expected)


@check
def tma_stores_undo_the_permutation(folder: Path) -> None:
    for swizzle in (0, 32, 64, 128):
        width = swizzle or 64
        source, expected = filled(64 * width), np.full((128, 256), 255, np.uint8)
        for row in range(64):
            for byte in range(width):
                expected[3 + row, 16 + byte] = source[offset(swizzle, row, byte)]
        equal(dump(folder, f"tma_store_{swizzle}").reshape(128, 256), expected)


@check
def tma_loads_give_zeros_outside_the_tensor(folder: Path) -> None:
    expected = np.zeros(8192, np.uint8)
    for row in range(28):
        for byte in range(16, 128):
            expected[offset(128, row, byte)] = tensor(100 + row, byte - 16)
    equal(dump(folder, "tma_load_outside"), expected)


@check
def tma_stores_skip_what_is_outside_the_tensor(folder: Path) -> None:
    source, expected = filled(8192), np.full((128, 256), 255, np.uint8)
    for y in range(8, 40):
        for x in range(96, 200):
            expected[y, x] = source[offset(128, y - 8, x - 96)]
    equal(dump(folder, "tma_store_outside").reshape(128, 256), expected)


@check
def the_swizzle_depends_on_the_absolute_address(folder: Path) -> None:
    """A tile at 512: the pattern of the rows that would be there in a tile at 0."""
    got = dump(folder, "tma_load_at_512")
    for row in range(64):
        for byte in range(128):
            at = offset(128, row + 4, byte) - 512
            assert got[at] == tensor(3 + row, 16 + byte), (row, byte)


def box(rank: int) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...], np.ndarray]:
    """tensor, its dims outermost first, index grids of the box, and which of it lies inside."""
    dims, sizes, at = (48, 5, 4, 3, 3), (32, 3, 2, 2, 2), (32, 3, -1, 1, 2)
    dims, sizes, at = (np.array(v[:rank][::-1]) for v in (dims, sizes, at))
    counting = (np.arange(dims.prod()) % 251).astype(np.uint8).reshape(dims)
    grids = np.meshgrid(*(np.arange(s) + a for s, a in zip(sizes, at, strict=True)), indexing="ij")
    inside = np.logical_and.reduce([(g >= 0) & (g < d) for g, d in zip(grids, dims, strict=True)])
    return counting, dims, tuple(grids), inside


@check
def tma_moves_boxes_of_every_rank(folder: Path) -> None:
    for rank in (2, 3, 4, 5):
        counting, dims, grids, inside = box(rank)
        clipped = tuple(np.clip(g, 0, d - 1) for g, d in zip(grids, dims, strict=True))
        loaded = np.where(inside, counting[clipped], 0)
        equal(dump(folder, f"tma_load_{rank}d"), loaded.ravel())
        stored = np.full(dims, 255, np.uint8)
        stored[tuple(g[inside] for g in grids)] = filled(inside.size).reshape(inside.shape)[inside]
        equal(dump(folder, f"tma_store_{rank}d"), stored.ravel())


@check
def a_multicast_reaches_every_block_of_the_cluster(folder: Path) -> None:
    rows = (np.arange(1024) % 251).astype(np.uint8)
    for rank in (2, 3, 4, 5):
        equal(dump(folder, f"tma_multicast_{rank}d"), np.tile(rows, 8))


@check
def bulk_copies_chain_through_the_cluster(folder: Path) -> None:
    rows = (np.arange(4096) % 251).astype(np.uint8).reshape(4, 1024)
    equal(dump(folder, "bulk_chain"), rows[[1, 0, 3, 2]].ravel())
    equal(dump(folder, "bulk_multicast"), np.tile(rows[0], 4))


@check
def st_async_stores_in_the_next_block(folder: Path) -> None:
    rank, thread = np.divmod(np.arange(512), 128)
    equal(dump(folder, "st_async", np.uint32), (1000 * ((rank + 1) % 2) + thread).astype(np.uint32))


# --- wgmma -----------------------------------------------------------------------------------------------
# D[m, n] = m + 64 n exactly, from four values of k: a dump then says which element each register holds.


@dataclass(frozen=True)
class Mma:
    name: str
    input: str
    n: int
    a: bytes
    b: bytes
    descriptors: list[int]
    transpose_a: bool = False
    transpose_b: bool = False
    registers: bool = False


def operand_values(rows: int, K: int, is_a: bool) -> np.ndarray:
    """[rows, K] float32."""
    values, i = np.zeros((rows, K), np.float32), np.arange(rows)
    columns = (
        (i % 16, i // 16, 0 * i + 8, 0 * i + 128)
        if is_a
        else (0 * i + 1, 0 * i + 16, i % 16 * 8, i // 16 * 8)
    )
    for k, column in zip((3, K // 4 + 5, K // 2 + 6, K - 1), columns, strict=True):
        values[:, k] = column
    return values


def encode(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 that the type holds exactly -> its codes."""
    if dtype == "e4m3":
        codes = np.array([int(x, 16) for x in golden("fp8")["e4m3_codes"]], np.uint32).view(np.float32)[:127]
        found = np.searchsorted(codes, values)
        assert (codes[found] == values).all()
        return found.astype(np.uint8)
    if dtype == "bf16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(np.float16).view(np.uint16)


def image(codes: np.ndarray, major: str, layout: str, is_k_first: bool = False) -> bytes:
    """An operand as shared memory: atoms of the golden data, along MN first, or along K first."""
    size = codes.dtype.itemsize
    atom = golden("smem_layout")["atoms"][f"{major}_{layout}_{size}B"]
    offsets, atom_bytes = np.array(atom["offset"]), atom["mn"] * atom["k"] * size
    rows, K = codes.shape
    num_mn, num_k = -(-rows // atom["mn"]), K // atom["k"]
    pitch_mn, pitch_k = (atom_bytes * num_k, atom_bytes) if is_k_first else (atom_bytes, atom_bytes * num_mn)
    memory = np.zeros(num_mn * num_k * atom_bytes, np.uint8)
    raw = codes.view(np.uint8).reshape(rows, K, size)
    for mn in range(rows):
        for k in range(K):
            at = mn // atom["mn"] * pitch_mn + k // atom["k"] * pitch_k
            at += offsets[mn % atom["mn"]][k % atom["k"]]
            memory[at : at + size] = raw[mn, k]
    return memory.tobytes()


def fragment(codes: np.ndarray) -> bytes:
    """The A operand as register words: [step][thread][register], from the golden data."""
    size = codes.dtype.itemsize
    rc = np.array(golden("wgmma_a_regs")["8bit_m64k32" if size == 1 else "16bit_m64k16"]["rc"])
    step = 32 // size
    parts = [codes[rc[..., 0], rc[..., 1] + k] for k in range(0, codes.shape[1], step)]
    return np.ascontiguousarray(np.stack(parts)).tobytes()


def k_descriptors(K_bytes: int) -> list[int]:
    """K-major, 128-byte swizzle, one span of K."""
    base = golden_descriptors("A e4m3 64x128 K SW128")[0]
    return [base + 2 * step for step in range(K_bytes // 32)]


def golden_descriptors(name: str, mn_index: int = 0) -> list[int]:
    [case] = [c for c in golden("gmma_desc")["desc"] if c[0] == name]
    return [int(d, 16) for mn, _, d in case[-1] if mn == mn_index]


def every_n(dtype: str, registers: bool) -> list[Mma]:
    K = 128 if dtype == "e4m3" else 64
    a = encode(operand_values(64, K, True), dtype)
    a_memory = fragment(a) if registers else image(a, "K", "SW128")
    return [
        Mma(f"{dtype}{'_rs' if registers else ''}_n{n}", dtype, n, a_memory,
            image(encode(operand_values(n, K, False), dtype), "K", "SW128"), k_descriptors(128) * 2,
            registers=registers)
        for n in ((64, 128, 256) if dtype == "f16" else range(8, 257, 8))
    ]  # fmt: skip


def every_layout() -> list[Mma]:
    """Each tile of gmma_desc.json, as A or as B; the other operand is K-major with the 128-byte swizzle."""
    cases = []
    for index, case in enumerate(golden("gmma_desc")["desc"]):
        name, size, major, (rows, K), *_ = case
        role, tile_dtype, _, _, layout, *rest = name.split()
        is_k_first = "k-first" in rest
        for dtype in (tile_dtype,) if size == 1 else ("bf16", "f16"):
            for mn_index in sorted({mn for mn, _, _ in case[-1]}):
                is_a, label = role == "A", f"tile{index}_{mn_index}_{dtype}"
                codes = encode(operand_values(64 if is_a else rows, K, is_a), dtype)
                if (
                    is_a and rows > 64
                ):  # the 64 rows that this instruction reads, among others that it must not
                    codes = np.concatenate([codes, codes[::-1]] if mn_index == 0 else [codes[::-1], codes])
                memory = image(codes, major, layout, is_k_first)
                own = golden_descriptors(name, mn_index)
                if K * size > 128:  # two spans of K: the other operand has them too
                    other_codes = encode(operand_values(64, K, not is_a), dtype)
                    other = image(other_codes, "K", "SW128")
                    base = golden_descriptors(name)[0]
                    other_descriptors = [base + s % 4 * 2 + s // 4 * (64 * 128 >> 4) for s in range(len(own))]
                else:
                    other_layout = {128: "SW128", 64: "SW64", 32: "SW32"}[K * size]
                    other = image(encode(operand_values(64, K, not is_a), dtype), "K", other_layout)
                    stem = {"SW128": "A e4m3 64x128 K SW128", "SW64": "A e4m3 64x64 K SW64",
                            "SW32": "A e4m3 64x32 K SW32"}[other_layout]  # fmt: skip
                    other_descriptors = golden_descriptors(stem)
                is_mn = major == "MN"
                if is_a:
                    cases.append(
                        Mma(label, dtype, 64, memory, other, own + other_descriptors, transpose_a=is_mn)
                    )
                    continue
                cases.append(
                    Mma(label, dtype, rows, other, memory, other_descriptors + own, transpose_b=is_mn)
                )
                if is_mn:
                    a = fragment(encode(operand_values(64, K, True), dtype))
                    cases.append(Mma(f"{label}_rs", dtype, rows, a, memory, other_descriptors + own,
                                     transpose_b=True, registers=True))  # fmt: skip
    return cases


def both_transposed() -> list[Mma]:
    def one(dtype: str) -> Mma:
        a = image(encode(operand_values(64, 64, True), dtype), "MN", "SW128")
        b = image(encode(operand_values(64, 64, False), dtype), "MN", "SW128")
        descriptors = golden_descriptors("A bf16 64x64 MN SW128")
        return Mma(f"both_mn_{dtype}", dtype, 64, a, b, descriptors * 2, True, True)

    return [one("bf16"), one("f16")]


def probes() -> list[Mma]:
    """256 + 2^-(i+j), the small product in the same instruction or the next: to fit the accumulator."""

    def one(name: str, k: int) -> Mma:
        a, b = np.zeros((64, 128), np.float32), np.zeros((64, 128), np.float32)
        small = 2.0 ** -(np.arange(64) % 10)
        a[:, 0], b[:, 0], a[:, k], b[:, k] = 256, 1, small, small
        a_memory, b_memory = (image(encode(x, "e4m3"), "K", "SW128") for x in (a, b))
        return Mma(name, "e4m3", 64, a_memory, b_memory, k_descriptors(128) * 2)

    return [one("accumulator_probe_same", 1), one("accumulator_probe_next", 40)]


@cache
def mma_cases() -> list[Mma]:
    exhaustive = [(t, r) for t in ("e4m3", "bf16", "f16") for r in (False, True)]
    return [
        *(c for t, r in exhaustive for c in every_n(t, r)),
        *every_layout(),
        *both_transposed(),
        *probes(),
    ]


def accumulator_map(n: int) -> np.ndarray:
    """row * N + column of every register, [thread * N/2 + register]."""
    data = golden("wgmma_acc")
    t, i = np.divmod(np.arange(64 * n), n // 2)
    found = (t // 32 * 16 + t % 32 // 4 + 8 * (i // 2 % 2)) * n + 8 * (i // 4) + 2 * (t % 4) + i % 2
    text = ",".join(map(str, found))
    assert hashlib.sha256(text.encode()).hexdigest() == data["sha256_of_comma_joined_list"][str(n)]
    return found


def check_mma(folder: Path, cases: list[Mma]) -> None:
    assert cases
    for case in cases:
        where = accumulator_map(case.n)
        expected = (where // case.n + 64 * (where % case.n)).astype(np.float32)
        try:
            equal(dump(folder, case.name, np.float32), expected)
        except AssertionError as error:
            raise AssertionError(f"{case.name}: {error}") from None


def add_mma_check(name: str, prefix: str) -> None:
    CHECKS[name] = lambda folder: check_mma(folder, [c for c in mma_cases() if c.name.startswith(prefix)])


for _dtype in ("e4m3", "bf16", "f16"):
    add_mma_check(f"wgmma_{_dtype}_accumulates_in_the_right_registers", f"{_dtype}_n")
    add_mma_check(f"wgmma_{_dtype}_takes_a_from_registers", f"{_dtype}_rs_n")
add_mma_check("wgmma_reads_every_layout_through_its_golden_descriptor", "tile")
add_mma_check("wgmma_reads_two_mn_major_operands", "both_mn")


# --- threads ---------------------------------------------------------------------------------------------


def matrix_fragment(count: int, is_transposed: bool) -> np.ndarray:
    """[32, 2 * count]: which element each half holds.

    Transposed, the golden data have x4 only; x1 and x2 are its first registers.
    """
    frag = golden("ldst_matrix")["frag"]
    if is_transposed:
        return np.array(frag["ldmatrix_x4_trans"])[:, : 2 * count]
    return np.array(frag[f"ldmatrix_x{count}"])


@check
def matrices_have_the_golden_fragments(folder: Path) -> None:
    for count in (1, 2, 4):
        for is_transposed in (False, True):
            got = dump(folder, f"matrix_x{count}{'_trans' if is_transposed else ''}", np.uint16)
            where = matrix_fragment(count, is_transposed)
            stored = np.zeros(64 * count, np.uint16)
            stored[where.ravel()] = np.arange(64 * count)
            equal(got[: 64 * count], stored)
            equal(got[256 : 256 + 64 * count], where.ravel().astype(np.uint16))


@check
def an_mbarrier_counts_phases(folder: Path) -> None:
    """Bit p: test_wait is true for parity p.

    Fresh, one of two arrivals, phase 0 over, phase 1 over, phase 2 over, initialised again.
    """
    equal(dump(folder, "phases", np.uint32), np.array([2, 2, 1, 2, 1, 2], np.uint32))


@check
def named_barriers_hand_over(folder: Path) -> None:
    equal(dump(folder, "named_barrier", np.uint32), 3 * np.arange(128, dtype=np.uint32))


@check
def a_cluster_shares_its_memory(folder: Path) -> None:
    block, lane = np.divmod(np.arange(256), 32)
    rank = block % 4
    theirs = 100 * ((rank + 1) % 4) + lane
    expected = np.stack([theirs, 100 * rank + lane + 7, 100 * (block // 4) + 10 * rank + 4], 1)
    equal(dump(folder, "cluster", np.uint32).reshape(-1, 3), expected.astype(np.uint32))


@check
def lanes_exchange_values(folder: Path) -> None:
    got = dump(folder, "warp", np.uint32).reshape(32, 7)
    lane = np.arange(32)
    value = lane**2 + 1
    assert len(set(got[:, 0])) == 1, "lanes disagree on who is elected"
    assert bin(int(got[0, 0])).count("1") == 1, "not one lane is elected"
    thirds = sum(1 << int(i) for i in lane if i % 3 == 0)
    same = [np.full(32, x) for x in ((value % 17).max(), value.sum(), thirds, 100)]
    expected = np.stack([value[::-1], value[lane ^ 5], *same], 1)
    equal(got[:, 1:], expected.astype(np.uint32))


def convert_inputs() -> np.ndarray:
    bits = sorted({int(x, 16) for kind in ("e4m3", "e5m2") for x in golden("fp8")["cvt"][kind]["f32_bits"]})
    return np.array(bits, np.uint32)


@check
def floats_convert_to_e4m3_as_the_golden_vectors(folder: Path) -> None:
    codes = dump(folder, "convert", np.uint32)[0::3]
    inputs, table = convert_inputs(), golden("fp8")["cvt"]["e4m3"]
    at = np.searchsorted(inputs, [int(x, 16) for x in table["f32_bits"]])
    equal(codes[at] & 0xFF, np.array(table["satfinite"], np.uint32))
    is_nan = np.isnan(inputs.view(np.float32))
    flipped = np.where(is_nan, codes & 0xFF, (codes & 0xFF) ^ 0x80)
    equal(codes >> 8 & 0xFF, flipped)


@check
def floats_convert_to_16_bits_and_divide_as_ieee(folder: Path) -> None:
    words, x = dump(folder, "convert", np.uint32), convert_inputs().view(np.float32)
    finite = np.isfinite(x)
    with np.errstate(all="ignore"):
        equal(words[1::3][finite] & 0xFFFF, x[finite].astype(np.float16).view(np.uint16).astype(np.uint32))
        equal(words[1::3][finite] >> 16, (-x[finite]).astype(np.float16).view(np.uint16).astype(np.uint32))
        equal(words[2::3][finite], (x[finite] / np.float32(3)).view(np.uint32))
    bits = x[finite].view(np.uint32)
    equal(words[0::3][finite] >> 16, (bits + 0x7FFF + (bits >> 16 & 1)) >> 16)
    assert (words[0::3][np.isnan(x)] >> 16 == 0x7FFF).all()
    assert (words[1::3][np.isnan(x)] & 0xFFFF == 0x7FFF).all()


@check
def codes_convert_back_exactly(folder: Path) -> None:
    words = dump(folder, "decode", np.uint32).reshape(256, 3)
    exact = np.array([int(x, 16) for x in golden("fp8")["e4m3_codes"]], np.uint32).view(np.float32)
    is_number = ~np.isnan(exact)
    equal(words[is_number, 0] & 0xFFFF, exact[is_number].astype(np.float16).view(np.uint16).astype(np.uint32))
    high = words[::-1, 0] >> 16
    equal(high[is_number], exact[is_number].astype(np.float16).view(np.uint16).astype(np.uint32))
    equal(words[is_number, 1].view(np.float32), exact[is_number])
    equal(words[:, 2], (np.arange(256, dtype=np.uint32) << 24) | 0x410000)


def width_inputs() -> np.ndarray:
    return (np.arange(992) * 37 % 256).astype(np.uint8)


@check
def accesses_of_every_width_move_their_bytes(folder: Path) -> None:
    equal(dump(folder, "widths"), width_inputs())


@check
def flags_order_blocks(folder: Path) -> None:
    equal(dump(folder, "flags", np.uint32), np.repeat([2, 4, 8, 16], 32).astype(np.uint32))
    # The last block found 15 and made it 20.
    equal(dump(folder, "flags_counters", np.uint32), np.array([4, 20, 35], np.uint32))


# --- commands --------------------------------------------------------------------------------------------


def prepare(folder: Path) -> None:
    inputs = folder / "in"
    inputs.mkdir(parents=True, exist_ok=True)
    convert_inputs().tofile(inputs / "convert.f32")
    width_inputs().tofile(inputs / "widths")
    lines = []
    for case in mma_cases():
        (inputs / f"{case.name}.a").write_bytes(case.a)
        (inputs / f"{case.name}.b").write_bytes(case.b)
        np.array(case.descriptors, np.uint64).tofile(inputs / f"{case.name}.descriptors")
        flags = (int(f) for f in (case.transpose_a, case.transpose_b, case.registers))
        lines.append(" ".join(map(str, (case.name, case.input, case.n, *flags, len(case.descriptors) // 2))))
    (inputs / "mma.txt").write_text("\n".join(lines) + "\n")


def failures(folder: Path) -> dict[str, str]:
    """Check -> what is wrong, for those that fail."""
    found = {}
    for name, function in CHECKS.items():
        try:
            function(folder)
        except (AssertionError, OSError, ValueError, IndexError) as error:
            found[name] = str(error)
    return found


if __name__ == "__main__":
    command, folder = sys.argv[1], Path(sys.argv[2])
    if command == "prepare":
        prepare(folder)
    else:
        wrong = failures(folder)
        for name, error in wrong.items():
            sys.stdout.write(f"FAILED {name}: {error}\n")
        sys.stdout.write(f"{len(CHECKS) - len(wrong)} passed, {len(wrong)} failed\n")
        sys.exit(bool(wrong))
