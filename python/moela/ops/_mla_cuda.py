"""What the CUDA kernels of attention over a latent cache take."""

from typing import Any

import torch
from torch import Tensor

from moela.ops import _check

DIMS = ((576, 512), (512, 512), (320, 256))  # columns of a row, and of its value: csrc/plan/mla_decode_sm90.h


def has_tma_rows(t: Tensor) -> bool:
    """Whether its rows are at multiples of 16 bytes: TMA reads them then, or loads of 16 bytes."""
    strides = [stride for size, stride in zip(t.shape, t.stride(), strict=True) if size > 1]
    return t.data_ptr() % 16 == 0 and not any(stride * t.element_size() % 16 for stride in strides[:-1])


def cuda_limits(q, cache, *_: Any, v_dim: int = 512, **__: Any) -> str | None:
    """Of mla_decode and mla_sparse."""
    is_bytes = cache.dtype == torch.uint8
    if q.dtype == torch.float32 or cache.dtype not in (q.dtype, torch.uint8):
        types = " and ".join(_check.dtype_name(t.dtype) for t in (q, cache))
        return f"it multiplies bfloat16 or float16, q and cache alike or a cache of uint8, these are {types}"
    if is_bytes and q.dtype != torch.bfloat16:
        return "it makes bfloat16 of a cache of uint8, q is float16"
    dims, names = (DIMS[:2], "512 + 64 and 512 + 0") if is_bytes else (DIMS, "512 + 64, 512 + 0 and 256 + 64")
    if (q.size(-1), v_dim) not in dims:
        return f"it has rows of {names} columns, not {v_dim} + {q.size(-1) - v_dim}"
    for name, t in (("q", q), ("cache", cache)):
        if not has_tma_rows(t):
            return f"it reads rows that start at multiples of 16 bytes, those of {name} do not"
    return None
