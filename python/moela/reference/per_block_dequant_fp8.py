"""Definition of ``per_block_dequant_fp8``: code times scale factor in float32, then one rounding."""

import torch
from torch import Tensor

BLOCK = 128


def per_block_dequant_fp8(q: Tensor, sf: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """The specification of ``moela.per_block_dequant_fp8``."""
    N, K = q.shape[-2:]
    wide = (
        sf.float().repeat_interleave(BLOCK, -2)[..., :N, :].repeat_interleave(BLOCK, -1)[..., :K]
    )  # [..., N, K]
    return (q.float() * wide).to(dtype)
