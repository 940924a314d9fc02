"""Definition of ``grouped_fp8_gemm``: ``fp8_gemm`` of each expert's rows with its weight."""

import torch
from torch import Tensor

from moela.reference.fp8_gemm import fp8_gemm
from moela.reference.grouped_gemm import groups


def grouped_fp8_gemm(
    a: Tensor,
    sf_a: Tensor | None,
    b: Tensor,
    sf_b: Tensor,
    expert_offsets: Tensor,
    *,
    out_dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """The specification of ``moela.grouped_fp8_gemm``: rows outside every group are zero."""
    d = torch.zeros(a.size(0), b.size(1), dtype=out_dtype, device=a.device)  # [M, N]
    for expert, rows in groups(expert_offsets):
        sf_rows = None if sf_a is None else sf_a[rows]
        d[rows] = fp8_gemm(a[rows], sf_rows, b[expert], sf_b[expert], out_dtype=out_dtype)
    return d
