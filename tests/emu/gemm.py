"""What the tests of the CUDA GEMMs share."""

from pathlib import Path

import torch
from moela import testing
from torch import Tensor

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float8_e8m0fnu: 3}
TILES = {
    0: "128x128",
    1: "128x128-shared-weights",
    2: "128x64",
    3: "128x64-shared-tokens",
    4: "swapped-16",
    5: "swapped-32",
    6: "swapped-64",
    7: "128x64-splits",
    8: "128x64-shared-tokens-splits",
    9: "swapped-16-splits",
    10: "swapped-32-splits",
    11: "swapped-64-splits",
}
SPLITS = {tile: 2 if "splits" in name else 1 for tile, name in TILES.items()}
# What the accumulator may lose: the 13 fraction bits that Hopper's is reported to keep, and float32.
ACCUM = {13: testing.HOPPER_FP8_SUM, 23: testing.FLOAT32_SUM}


def with_padding(codes: Tensor, row_bytes: int) -> Tensor:
    """[..., K] e4m3 as bytes, with NaN between the rows."""
    rows = torch.full((*codes.shape[:-1], row_bytes), 0xFF, dtype=torch.uint8)
    rows[..., : codes.size(-1)] = codes.view(torch.uint8)
    return rows


def write(path: Path, t: Tensor) -> None:
    path.write_bytes(t.contiguous().view(torch.uint8).numpy().tobytes())


def read(path: Path, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.frombuffer(bytearray(path.read_bytes()), dtype=dtype).view(shape)
