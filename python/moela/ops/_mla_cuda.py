"""What the CUDA kernels of attention over a latent cache take."""

from typing import Any

import torch
from torch import Tensor

from moela.ops import _check

DIMS = ((576, 512), (512, 512), (320, 256))  # columns of a row, and of its value: csrc/plan/mla_decode_sm90.h


def has_tma_rows(t: Tensor) -> bool:
    """Whether TMA reads its rows: 2-byte elements, rows at multiples of 16 bytes."""
    strides = [stride for size, stride in zip(t.shape, t.stride(), strict=True) if size > 1]
    return t.data_ptr() % 16 == 0 and not any(stride % 8 for stride in strides[:-1])


def decode_limits(q, cache, *_: Any, v_dim: int = 512, cu_seqlens_q=None, **__: Any) -> str | None:
    """Of mla_decode."""
    if q.dtype != cache.dtype or q.dtype == torch.float32:
        types = " and ".join(_check.dtype_name(t.dtype) for t in (q, cache))
        return f"it multiplies bfloat16 or float16, q and cache alike, these are {types}"
    if (q.size(-1), v_dim) not in DIMS:
        return f"it has rows of 512 + 64, 512 + 0 and 256 + 64 columns, not {v_dim} + {q.size(-1) - v_dim}"
    if cu_seqlens_q is not None:
        return "it takes the same number of queries of each request, not cu_seqlens_q"
    for name, t in (("q", q), ("cache", cache)):
        if not has_tma_rows(t):
            return f"TMA reads rows that start at multiples of 16 bytes, those of {name} do not"
    return None
