"""Definition of ``per_token_group_quant_fp8``, and the cast to e4m3 that every quantization shares."""

import torch
from torch import Tensor

FP8_MAX = 448.0  # the largest finite e4m3fn value
SF_MIN = 2.0**-126  # the smallest normal float32: a zero group divides by it and gives zeros


def scale_factor(amax: Tensor, ue8m0: bool) -> Tensor:
    """The float32 that maps amax to the largest fp8 value; with ue8m0 rounded up to a power of two."""
    sf = (amax / FP8_MAX).clamp(min=SF_MIN)
    if not ue8m0:
        return sf
    mantissa, exponent = torch.frexp(sf)  # sf = mantissa * 2^exponent, mantissa in [0.5, 1)
    exponent = exponent - (mantissa == 0.5).to(exponent.dtype)  # an exact power of two stays
    up = torch.ldexp(torch.ones_like(sf), exponent)
    return torch.where(sf.isfinite(), up, sf)


def cast_e4m3(x: Tensor) -> Tensor:
    """float32 -> e4m3fn, nearest even, clamped to +-448. torch's own cast overflows differently."""
    return x.clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)


def per_token_group_quant_fp8(x: Tensor, group_size: int = 128, ue8m0: bool = False) -> tuple[Tensor, Tensor]:
    """The specification of ``moela.per_token_group_quant_fp8``."""
    K = x.size(-1)
    group_size = min(group_size, max(K, 1))
    num_groups = -(-K // group_size)
    wide = torch.nn.functional.pad(x.float(), (0, num_groups * group_size - K))
    groups = wide.unflatten(-1, (num_groups, group_size))  # [..., num_groups, group_size]
    sf = scale_factor(groups.abs().amax(-1), ue8m0)  # [..., num_groups]; a NaN in a group makes its sf NaN
    q = cast_e4m3(groups / sf.unsqueeze(-1))
    return q.flatten(-2)[..., :K].contiguous(), sf
