"""Definition of ``per_block_quant_fp8``: one scale factor per 128 x 128 block."""

import torch
from torch import Tensor

from moela.reference.per_token_group_quant_fp8 import cast_e4m3, scale_factor

BLOCK = 128


def per_block_quant_fp8(w: Tensor, ue8m0: bool = False) -> tuple[Tensor, Tensor]:
    """The specification of ``moela.per_block_quant_fp8``."""
    N, K = w.shape[-2:]
    rows, cols = -(-N // BLOCK), -(-K // BLOCK)
    wide = torch.nn.functional.pad(w.float(), (0, cols * BLOCK - K, 0, rows * BLOCK - N))
    blocks = wide.unflatten(-1, (cols, BLOCK)).unflatten(-3, (rows, BLOCK))  # [..., rows, 128, cols, 128]
    sf = scale_factor(blocks.abs().amax((-3, -1)), ue8m0)  # [..., rows, cols]
    q = cast_e4m3(blocks / sf[..., :, None, :, None])
    return q.flatten(-2).flatten(-3, -2)[..., :N, :K].contiguous(), sf
