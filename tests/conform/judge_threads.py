"""Barriers, warp collectives, matrices, conversions, widths of accesses and flags."""

from pathlib import Path

import numpy as np
from facts import check, dump, equal, golden


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
    check_fp8(dump(folder, "convert", np.uint32)[0::4], "e4m3")


@check
def floats_convert_to_e5m2_as_the_golden_vectors(folder: Path) -> None:
    check_fp8(dump(folder, "convert", np.uint32)[3::4], "e5m2")


def check_fp8(codes: np.ndarray, dtype: str) -> None:
    """codes: of x in the low byte, of -x in the next."""
    inputs, table = convert_inputs(), golden("fp8")["cvt"][dtype]
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
        equal(words[1::4][finite] & 0xFFFF, x[finite].astype(np.float16).view(np.uint16).astype(np.uint32))
        equal(words[1::4][finite] >> 16, (-x[finite]).astype(np.float16).view(np.uint16).astype(np.uint32))
        equal(words[2::4][finite], (x[finite] / np.float32(3)).view(np.uint32))
    bits = x[finite].view(np.uint32)
    equal(words[0::4][finite] >> 16, (bits + 0x7FFF + (bits >> 16 & 1)) >> 16)
    assert (words[0::4][np.isnan(x)] >> 16 == 0x7FFF).all()
    assert (words[1::4][np.isnan(x)] & 0xFFFF == 0x7FFF).all()


@check
def codes_convert_back_exactly(folder: Path) -> None:
    words = dump(folder, "decode", np.uint32).reshape(256, 4)
    for dtype, column in (("e4m3", 0), ("e5m2", 3)):
        exact = np.array([int(x, 16) for x in golden("fp8")[f"{dtype}_codes"]], np.uint32).view(np.float32)
        is_number = ~np.isnan(exact)
        halves = exact[is_number].astype(np.float16).view(np.uint16).astype(np.uint32)
        equal(words[is_number, column] & 0xFFFF, halves)
        equal(words[::-1, column][is_number] >> 16, halves)
        if dtype == "e4m3":
            equal(words[is_number, 1].view(np.float32), exact[is_number])
    equal(words[:, 2], (np.arange(256, dtype=np.uint32) << 24) | 0x410000)


def approx_inputs() -> np.ndarray:
    return np.array([int(x, 16) for x, _ in golden("approx")["ex2"]["x"]], np.uint32)


@check
def powers_of_two_are_as_exact_as_documented(folder: Path) -> None:
    got = dump(folder, "approx_ex2", np.float32).astype(np.float64)
    golden_ex2 = golden("approx")["ex2"]
    exact = np.array([float.fromhex(e) for _, e in golden_ex2["x"]])
    is_special = ~np.isfinite(exact) | (exact == 0)
    np.testing.assert_array_equal(got[is_special], exact[is_special])
    error = np.abs(got[~is_special] / exact[~is_special] - 1)
    assert error.max() <= float.fromhex(golden_ex2["relative_error"]), error.max()
    assert not np.signbit(got[got == 0]).any()


def width_inputs() -> np.ndarray:
    return (np.arange(992) * 37 % 256).astype(np.uint8)


@check
def accesses_of_every_width_move_their_bytes(folder: Path) -> None:
    equal(dump(folder, "widths"), np.concatenate([width_inputs(), width_inputs()[480:]]))


@check
def flags_order_blocks(folder: Path) -> None:
    equal(dump(folder, "flags", np.uint32), np.repeat([2, 4, 8, 16], 32).astype(np.uint32))
    # The last block found 15 and made it 20.
    equal(dump(folder, "flags_counters", np.uint32), np.array([4, 20, 35], np.uint32))
    equal(dump(folder, "fences", np.uint32), np.repeat([3, 9, 27, 81], 32).astype(np.uint32))


@check
def waits_end_at_their_deadline(folder: Path) -> None:
    equal(dump(folder, "deadline", np.uint32), np.array([1, 0, 1], np.uint32))
