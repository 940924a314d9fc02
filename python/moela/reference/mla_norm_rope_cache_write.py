"""Definition of ``mla_norm_rope_cache_write``: normalize, rotate, then what ``mla_cache_write`` does.

Every step below is one float32 operation, rounded to nearest and not fused with another, so that the rounded
values, and with them the codes and scale factors, are the same on every backend.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from moela.reference._mla_cache import GROUP
from moela.reference.mla_cache_write import mla_cache_write


def sum_of_squares(x: Tensor) -> Tensor:
    """[T, L] float32 -> [T]: blocks of 128 columns, each summed by halves, one after the other."""
    blocks = pad(x * x, (0, -x.size(1) % GROUP)).unflatten(1, (-1, GROUP))  # [T, L / 128, 128]
    while blocks.size(2) > 1:
        half = blocks.size(2) // 2
        blocks = blocks[:, :, :half] + blocks[:, :, half:]  # [T, L / 128, half]
    total = blocks[:, 0, 0]  # [T]
    for block in range(1, blocks.size(1)):
        total = total + blocks[:, block, 0]
    return total


def normalized(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """[T, L], [L] float32 -> [T, L]. The root is taken in float64 for the reason in moe_topk.sqrtsoftplus.

    L is a tensor: torch on a GPU multiplies by the reciprocal of a number.
    """
    total = sum_of_squares(x)  # [T]
    root = (total / torch.full_like(total, x.size(1)) + eps).double().sqrt().float()
    return x * root.reciprocal()[:, None] * weight


def rotated(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """[T, R], [T, R / 2] float32 -> [T, R]: pairs of columns, turned by an angle each."""
    first, second = (x[:, 0::2], x[:, 1::2]) if interleaved else x.chunk(2, 1)  # [T, R / 2]
    turned = first * cos - second * sin, second * cos + first * sin
    return torch.stack(turned, 2).flatten(1) if interleaved else torch.cat(turned, 1)  # [T, R]


def mla_norm_rope_cache_write(
    kv: Tensor,
    weight: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    cache: Tensor,
    slot_mapping: Tensor,
    eps: float,
    interleaved: bool = True,
    ue8m0: bool = False,
) -> None:
    """The specification of ``moela.mla_norm_rope_cache_write``."""
    kv_c, k_pe = kv.float().tensor_split([weight.size(0)], 1)  # [T, L], [T, R]
    kv_c = normalized(kv_c, weight.float(), eps)
    if cos is not None:
        k_pe = rotated(k_pe, cos.float(), sin.float(), interleaved)
    mla_cache_write(kv_c.to(kv.dtype), k_pe.to(kv.dtype), cache, slot_mapping, ue8m0)
