"""Definition of ``grouped_fp8_gemm_masked``: ``fp8_gemm`` of each expert's first rows with its weight."""

import torch
from torch import Tensor

from moela.reference.fp8_gemm import fp8_gemm


def grouped_fp8_gemm_masked(
    a: Tensor,
    sf_a: Tensor | None,
    b: Tensor,
    sf_b: Tensor,
    expert_counts: Tensor,
    *,
    out_dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """The specification of ``moela.grouped_fp8_gemm_masked``: rows from an expert's count on are zero."""
    d = torch.zeros(*a.shape[:2], b.size(1), dtype=out_dtype, device=a.device)  # [E, Mmax, N]
    for e, count in enumerate(expert_counts.tolist()):
        sf_rows = None if sf_a is None else sf_a[e, :count]
        d[e, :count] = fp8_gemm(a[e, :count], sf_rows, b[e], sf_b[e], out_dtype=out_dtype)
    return d
