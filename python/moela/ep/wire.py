"""The row that travels: its columns one after another, each on a 16-byte boundary."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from moela.ep.rows import pack

ALIGNMENT = 16  # bytes: vector loads of every backend may assume it


def _padded(width: int) -> int:
    return -(-width // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class WireFormat:
    """Where in a wire row each column is. Every rank computes the same from the same widths."""

    widths: tuple[int, ...]  # bytes of each column

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        offsets, end = [], 0
        for width in self.widths:
            offsets.append(end)
            end += _padded(width)
        return tuple(offsets)

    @cached_property
    def row_bytes(self) -> int:
        return sum(_padded(width) for width in self.widths)

    def pack(self, columns: Sequence[Tensor], rows: Tensor, num_rows: int) -> Tensor:
        """The first rows of rows as wire rows: [*, w] uint8 each, [*] int32 -> [num_rows, row_bytes].

        What lies between the columns is not written.
        """
        wire = rows.new_empty((num_rows, self.row_bytes), dtype=torch.uint8)
        pack(columns, rows, self.offsets, [num_rows], [0], wire)
        return wire

    def column(self, wire: Tensor, i: int) -> Tensor:
        """Column i of wire rows, a view: [m, row_bytes] uint8 -> [m, widths[i]] uint8."""
        return wire[:, self.offsets[i] : self.offsets[i] + self.widths[i]]


@lru_cache(maxsize=256)
def wire_format(widths: tuple[int, ...]) -> WireFormat:
    """The same object for the same widths, which knows its offsets already."""
    return WireFormat(widths)


def as_bytes(t: Tensor) -> Tensor:
    """[T, w] of any dtype, last dimension contiguous -> [T, w * itemsize] uint8, a view."""
    if t.stride(-1) != 1:  # a dimension of one element: torch gives it any stride, and views it with 1 only
        t = t.as_strided(t.shape, (*t.stride()[:-1], 1))
    return t.view(torch.uint8)


def from_bytes(t: Tensor, dtype: torch.dtype) -> Tensor:
    """The values in [m, bytes] uint8, a copy that is aligned for dtype."""
    return t.contiguous().view(dtype)
