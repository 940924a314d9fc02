"""The row formats of the latent cache: what one token is in it.

A cache of a float type holds kv_c [L], then k_pe [R]. One of bytes holds L e4m3 codes, a float32 scale factor
for each 128 of them, and k_pe as bfloat16: 656 bytes for L = 512 and R = 64.
"""

import torch
from torch import Tensor

from moela.reference.per_token_group_quant_fp8 import per_token_group_quant_fp8

GROUP = 128  # columns of kv_c that share a scale factor


def row_size(L: int, R: int, dtype: torch.dtype) -> int:
    """Elements of a row."""
    return L + L // GROUP * 4 + 2 * R if dtype == torch.uint8 else L + R


def encode(kv_c: Tensor, k_pe: Tensor, dtype: torch.dtype, ue8m0: bool) -> Tensor:
    """[T, L], [T, R] -> [T, row_size] of dtype."""
    if dtype != torch.uint8:
        return torch.cat([kv_c, k_pe], 1).to(dtype)
    q, sf = per_token_group_quant_fp8(kv_c, GROUP, ue8m0)  # [T, L], [T, L / 128]
    parts = (q, sf, k_pe.bfloat16())
    return torch.cat([part.contiguous().view(torch.uint8) for part in parts], 1)


def _read(part: Tensor, dtype: torch.dtype) -> Tensor:
    """[..., n] uint8 -> [..., n / itemsize]. Copied, as a view has to begin where dtype does; flat, as the
    strides of a single row, or of one without columns, have to be such too."""
    values = part.clone(memory_format=torch.contiguous_format).flatten().view(dtype)
    return values.view(*part.shape[:-1], part.size(-1) // dtype.itemsize)


def decode(rows: Tensor, L: int) -> Tensor:
    """[..., row_size] -> [..., L + R] float32, exact but for the product with a scale factor."""
    if rows.dtype != torch.uint8:
        return rows.float()
    codes, sf, k_pe = rows.split([L, L // GROUP * 4, rows.size(-1) - L - L // GROUP * 4], -1)
    sf = _read(sf, torch.float32).repeat_interleave(GROUP, -1)  # [..., L]
    codes, k_pe = _read(codes, torch.float8_e4m3fn), _read(k_pe, torch.bfloat16)
    return torch.cat([codes.float() * sf, k_pe.float()], -1)
