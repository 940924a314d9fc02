"""What forward and backward of ``mla_prefill`` share: which tile a program owns, and loads of rows of a head.

Tiles of all sequences are one row of slots: sequence b begins at slot offsets[b] // BLOCK + b, which leaves
room for its tiles wherever it begins. So the grid follows from sizes that the host knows, and a program
finds its sequence by bisection. Rows beyond the last offset are one sequence more, without partners.
"""

import triton
import triton.language as tl
from moela.kernels import _fp8
from moela.kernels._mla_cache import is_finite


@triton.jit
def sequence_of(slot, offsets_ptr, B, BLOCK: tl.constexpr):
    """The sequence whose slots `slot` is among; the last one that begins at or before it."""
    low, high = slot * 0, slot * 0 + B + 1
    while high - low > 1:
        middle = (low + high) // 2
        begins_later = tl.load(offsets_ptr + middle) // BLOCK + middle > slot
        low, high = tl.where(begins_later, low, middle), tl.where(begins_later, middle, high)
    return low


@triton.jit
def bounds_of(sequence, offsets_ptr, B, rows):
    """(first row, number of rows) of a sequence; of number B: those beyond the last offset."""
    begin = tl.load(offsets_ptr + sequence)
    end = tl.load(offsets_ptr + sequence + 1, mask=sequence < B, other=rows)
    return begin, end - begin


@triton.jit
def load_rows(
    ptr, row, live, stride_t, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, DOT: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """[rows, BLOCK] of DOT: rows of one head; zeros where not live and in columns from COLUMNS on."""
    col = tl.arange(0, BLOCK)[None, :]
    kept = live[:, None] & (col < COLUMNS)
    tile = tl.load(ptr + row.to(tl.int64)[:, None] * stride_t + col, mask=kept, other=0.0)
    return tile if tile.dtype == DOT else _fp8.to_float32(tile, INTERPRETED)


@triton.jit
def is_any(x):
    """Whether one of a tile of bools is true."""
    return tl.max(tl.max(x.to(tl.int32), axis=1), axis=0) != 0


@triton.jit
def finite_or_zero(x, INTERPRETED: tl.constexpr):
    return tl.where(is_finite(x, INTERPRETED), x, tl.zeros_like(x))


@triton.jit
def add_not_finite(
    acc, weight, ptr, begin, end, least, limit, stride_t, COLUMNS: tl.constexpr, DOT: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """acc + weight * x, x what is not finite of rows [begin, end) that each row of acc sees.

    Row i sees those from least[i] up to limit[i]. Steps that not all see have multiplied by 0 instead, as
    0 * NaN would reach who does not see it. Rows are taken one by one, and twice does no harm.
    """
    for row in range(begin, end):
        one = row + tl.arange(0, 1)
        x = load_rows(ptr, one, one < end, stride_t, COLUMNS, acc.shape[1], DOT, INTERPRETED)
        x = _fp8.to_float32(x, INTERPRETED)
        is_seen = (least <= row) & (row < limit)
        acc = tl.where(is_seen[:, None] & ~is_finite(x, INTERPRETED), acc + weight * x, acc)
    return acc


@triton.jit
def store_rows(
    ptr, tile, row, live, stride_t, COLUMNS: tl.constexpr, INTERPRETED: tl.constexpr
):  # fmt: skip
    """The reverse, rounded once."""
    col = tl.arange(0, tile.shape[1])[None, :]
    rounded = _fp8.round_to(tile, ptr.dtype.element_ty, INTERPRETED)
    tl.store(ptr + row.to(tl.int64)[:, None] * stride_t + col, rounded, mask=live[:, None] & (col < COLUMNS))


def num_slots(rows: int, B: int, block: int) -> int:
    return rows // block + B + 1


def pieces_of(D: int) -> dict[str, int]:
    """D columns as a block of a power of two and a block for the rest, if any: 192 is 128 and 64.

    256 is twice 128: fewer registers hold the operands of a product.
    """
    block_1 = min(max(1 << (D.bit_length() - 1), 16), 128)
    return {"D": D, "BLOCK_1": block_1, "BLOCK_2": max(triton.next_power_of_2(max(D - block_1, 0)), 16)}
