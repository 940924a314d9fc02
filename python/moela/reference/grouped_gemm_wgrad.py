"""Definition of ``grouped_gemm_wgrad``: a sum over each expert's rows, rounded once."""

import torch
from torch import Tensor

from moela.reference.fp8_gemm import wide_dtype
from moela.reference.grouped_gemm import groups


def grouped_gemm_wgrad(grad: Tensor, a: Tensor, expert_offsets: Tensor) -> Tensor:
    """The specification of ``moela.grouped_gemm_wgrad``: float64 inside; no rows, no gradient."""
    wide = wide_dtype(a.device)
    num_experts = expert_offsets.size(0) - 1
    grad_b = torch.zeros(num_experts, grad.size(1), a.size(1), dtype=a.dtype, device=a.device)  # [E, N, K]
    for expert, rows in groups(expert_offsets):
        grad_b[expert] = (grad[rows].to(wide).T @ a[rows].to(wide)).to(a.dtype)  # [N, K]
    return grad_b
