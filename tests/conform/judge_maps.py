"""Reductions, copies with edited tensor maps and with cache hints."""

from pathlib import Path

import numpy as np
from facts import check, dump, equal


def floats(folder: Path, name: str, dtype: str) -> np.ndarray:
    if dtype == "f32":
        return dump(folder, name, np.float32)
    return (dump(folder, name, np.uint16).astype(np.uint32) << 16).view(np.float32)


def added(count: int) -> np.ndarray:
    """What three blocks add to each element of a box: 1 + 2 + 3 times the pattern, exact in any order."""
    return 6.0 * (np.arange(count) % 7 + 1)


@check
def tma_adds_boxes_of_every_rank(folder: Path) -> None:
    for rank in (2, 3, 4, 5):
        dims, sizes, at = (24, 5, 4, 3, 3), (16, 3, 2, 2, 2), (12, 3, -1, 1, 2)
        dims, sizes, at = (np.array(v[:rank][::-1]) for v in (dims, sizes, at))
        grids = np.meshgrid(*(np.arange(s) + a for s, a in zip(sizes, at, strict=True)), indexing="ij")
        inside = np.logical_and.reduce([(g >= 0) & (g < d) for g, d in zip(grids, dims, strict=True)])
        expected = np.zeros(dims, np.float32)
        expected[tuple(g[inside] for g in grids)] = added(inside.size).reshape(inside.shape)[inside]
        for dtype in ("f32", "bf16"):
            equal(floats(folder, f"tma_reduce_{rank}d_{dtype}", dtype), expected.ravel())


@check
def bulk_copies_add(folder: Path) -> None:
    for dtype in ("f32", "bf16"):
        equal(floats(folder, f"bulk_reduce_{dtype}", dtype), added(64).astype(np.float32))


@check
def copies_follow_an_edited_tensor_map(folder: Path) -> None:
    tensor = (np.arange(2048) % 251).astype(np.uint8)
    moved = np.stack([tensor[16 + 64 * row :][:64] for row in range(8)])
    strided = np.stack([tensor[16 + 128 * row :][:64] if row < 5 else np.zeros(64) for row in range(8)])
    in_place = np.stack([tensor[48 + 128 * row :][:64] if row < 5 else np.zeros(64) for row in range(8)])
    equal(
        dump(folder, "edited_maps").reshape(3, 8, 64), np.stack([moved, strided, in_place]).astype(np.uint8)
    )


@check
def cache_hints_change_no_result(folder: Path) -> None:
    rows = (np.arange(512) % 251).astype(np.uint8).reshape(2, 256)
    equal(dump(folder, "hinted").reshape(2, 9, 256), np.stack([rows[[0, 0, 0, 0, 1, 1, 1, 1, 0]]] * 2))
