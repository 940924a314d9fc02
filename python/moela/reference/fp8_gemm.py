"""Definition of ``fp8_gemm``: dequantize, multiply, add the bias, round once."""

import torch
from torch import Tensor

BLOCK = 128  # elements along K, and rows of b along N, that share one scale factor


def wide_dtype(device: torch.device) -> torch.dtype:
    """The type that definitions compute in: float64, which MPS does not have."""
    return torch.float32 if device.type == "mps" else torch.float64


def dequantize_rows(a: Tensor, sf_a: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """[M, K] float8, [M, ceil(K/128)] -> [M, K]: each scale factor covers 1 x 128 elements."""
    sf = sf_a.to(dtype).repeat_interleave(BLOCK, dim=1)[:, : a.size(1)]  # [M, K]
    return a.to(dtype) * sf


def dequantize_blocks(b: Tensor, sf_b: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """[N, K] float8, [ceil(N/128), ceil(K/128)] -> [N, K]: each scale factor covers 128 x 128 elements."""
    sf = sf_b.to(dtype).repeat_interleave(BLOCK, dim=0)[: b.size(0)]  # [N, ceil(K/128)]
    return dequantize_rows(b, sf, dtype)


def fp8_gemm(
    a: Tensor,
    sf_a: Tensor | None,
    b: Tensor,
    sf_b: Tensor,
    *,
    bias: Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """The specification of ``moela.fp8_gemm``: no tiling, float64 inside, one rounding at the end."""
    wide = wide_dtype(a.device)
    left = a.to(wide) if sf_a is None else dequantize_rows(a, sf_a, wide)  # [M, K]
    d = left @ dequantize_blocks(b, sf_b, wide).T  # [M, N]
    if bias is not None:
        d = d + bias.to(wide)
    return d.to(out_dtype)
