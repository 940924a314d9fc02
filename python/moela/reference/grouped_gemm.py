"""Definition of ``grouped_gemm``: each expert's rows times its weight, rounded once."""

import torch
from torch import Tensor

from moela.reference.fp8_gemm import wide_dtype


def groups(expert_offsets: Tensor) -> list[tuple[int, slice]]:
    """(expert, its rows) of the experts that have some; reads the offsets on the host."""
    bounds = expert_offsets.tolist()
    rows_of = [slice(*bounds[expert : expert + 2]) for expert in range(len(bounds) - 1)]
    return [(expert, rows) for expert, rows in enumerate(rows_of) if rows.start < rows.stop]


def grouped_gemm(a: Tensor, b: Tensor, expert_offsets: Tensor) -> Tensor:
    """The specification of ``moela.grouped_gemm``: float64 inside; rows outside every group are zero."""
    wide = wide_dtype(a.device)
    d = torch.zeros(a.size(0), b.size(1), dtype=a.dtype, device=a.device)  # [M, N]
    for expert, rows in groups(expert_offsets):
        d[rows] = (a[rows].to(wide) @ b[expert].to(wide).T).to(a.dtype)  # [rows, N]
    return d
