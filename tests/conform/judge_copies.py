"""TMA and bulk copies, against the layouts of the golden data."""

from pathlib import Path

import numpy as np
from facts import check, dump, equal, golden


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


@check
def copies_see_fenced_stores(folder: Path) -> None:
    thread = np.arange(128, dtype=np.uint32)
    equal(dump(folder, "proxies", np.uint32).reshape(3, 128), np.stack([3 * thread, 5 * thread, 7 * thread]))
