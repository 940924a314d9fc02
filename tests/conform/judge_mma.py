"""wgmma and its descriptors: inputs from the golden layouts, and what the accumulators must hold.

D[m, n] = m + 64 n exactly, from four values of k: a dump then says which element each register holds.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from facts import CHECKS, SPANS, check, dump, equal, golden


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


def descriptor_arguments() -> np.ndarray:
    """[case, (leading_bytes, stride_bytes, layout)] of the golden tiles, by the rules of descriptor.h."""
    rows = []
    for name, size, major, (mn, K), *_ in golden("gmma_desc")["desc"]:
        layout, *rest = name.split()[4:]
        span = SPANS[layout]
        along_mn, along_k = (mn // 8, K * size // span) if major == "K" else (mn * size // span, K // 8)
        atom = 8 * span
        pitch_mn, pitch_k = (atom * along_k, atom) if "k-first" in rest else (atom, atom * along_mn)
        if layout == "NONE":
            leading, stride = pitch_k, pitch_mn
        elif major == "K":
            leading, stride = 16, pitch_mn
        else:
            leading, stride = pitch_mn if along_mn > 1 else 0, pitch_k
        rows.append((leading, stride, ["NONE", "SW128", "SW64", "SW32"].index(layout)))
    return np.array(rows, np.uint32)


@check
def descriptors_have_the_golden_bits(folder: Path) -> None:
    cases = golden("gmma_desc")["desc"]
    expected = [int(case[-1][0][2], 16) + (1024 * i >> 4) for i, case in enumerate(cases)]
    moved = [descriptor + (4096 >> 4) for descriptor in expected]
    equal(dump(folder, "descriptors", np.uint64).reshape(-1, 2), np.array([expected, moved], np.uint64).T)
