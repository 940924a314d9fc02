"""Which tile a program owns where rows belong to experts: found on the device, from offsets or counts."""

import triton
import triton.language as tl
from moela.kernels import _gemm


@triton.jit
def count_tiles(rows_ptr, E, MASKED: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_M: tl.constexpr):
    """[BLOCK_E]: row tiles of each expert; rows_ptr has offsets [E + 1] or, with MASKED, counts [E]."""
    expert = tl.arange(0, BLOCK_E)
    counts = tl.load(rows_ptr + expert + (not MASKED), mask=expert < E, other=0)
    if not MASKED:
        counts -= tl.load(rows_ptr + expert, mask=expert < E, other=0)
    return tl.cdiv(counts, BLOCK_M)


@triton.jit
def find_tile(
    tile, tiles_n, rows_ptr, E,
    MASKED: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_M: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """(expert, first row of the tile, end of the expert's rows, tile_n) of tile number `tile`.

    Tiles are counted expert by expert, so that an expert without rows has none. The counts are read again
    for every tile: kept, they would take registers from the walk over K.
    """
    tiles = count_tiles(rows_ptr, E, MASKED, BLOCK_E, BLOCK_M)
    ends = tl.cumsum(tiles, 0)
    is_before = ends <= tile // tiles_n
    expert = tl.sum(is_before.to(tl.int32), 0)
    tile -= tl.sum(tl.where(is_before, tiles, 0), 0) * tiles_n
    if MASKED:
        begin = 0
        end = tl.load(rows_ptr + expert)
    else:
        begin = tl.load(rows_ptr + expert)
        end = tl.load(rows_ptr + expert + 1)
    tile_m, tile_n = _gemm.raster(tile, tl.cdiv(end - begin, BLOCK_M), tiles_n, GROUP_M)
    return expert, begin + tile_m * BLOCK_M, end, tile_n


def num_programs(rows: int, num_experts: int, block_m: int, tiles_n: int, multiprocessors: int) -> int:
    """Two for each multiprocessor, which loop over tiles, or one for each tile that there can be.

    `rows` in all groups fill at most this many row tiles, since only experts with rows have a last one.
    """
    row_tiles = (rows + min(rows, num_experts) * (block_m - 1)) // block_m
    return min(row_tiles * tiles_n, 2 * multiprocessors)
