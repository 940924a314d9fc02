"""Triton backend of ``grouped_fp8_gemm_masked``: the kernel of ``grouped_fp8_gemm``, by counts."""

import torch
from moela.kernels.grouped_fp8_gemm import launch_experts
from torch import Tensor


def launch(
    a: Tensor,
    sf_a: Tensor | None,
    b: Tensor,
    sf_b: Tensor,
    expert_counts: Tensor,
    *,
    out_dtype: torch.dtype = torch.bfloat16,
    out: tuple[Tensor],
) -> None:
    launch_experts(a, sf_a, b, sf_b, expert_counts, out[0], masked=True)
