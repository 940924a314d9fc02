"""Rows of experts for the grouped ops: how inputs are split, and which rows are in a group."""

from collections.abc import Sequence

import torch
from torch import Tensor


def split_rows(M: int, E: int, seed: int = 0) -> list[int]:
    """M rows over E experts at random; expert 1, if there is one, gets none."""
    g = torch.Generator().manual_seed(seed)
    weights = torch.rand(E, generator=g)
    weights[1:2] = 0 if E > 1 else weights[1:2]
    cuts = (weights.cumsum(0) / weights.sum() * M).round().int()  # [E]
    return cuts.diff(prepend=torch.zeros(1, dtype=torch.int32)).tolist()


def offsets_of(counts: Sequence[int], first: int = 0) -> Tensor:
    """Rows of each expert -> [E + 1] int32, the first group beginning at row `first`."""
    return torch.tensor([first, *counts], dtype=torch.int32).cumsum(0, dtype=torch.int32)


def num_rows(M: int, E: int, counts: Sequence[int] | None) -> tuple[int, int]:
    """(rows in groups, experts with rows), for the counts of flops and bytes."""
    counts = split_rows(M, E) if counts is None else counts
    return sum(counts), sum(c > 0 for c in counts)


def rows_in_groups(expert_offsets: Tensor) -> tuple[Tensor, Tensor]:
    """(begin, end), [1] each: the rows of all groups are one range."""
    return expert_offsets[:1], expert_offsets[-1:]
