"""A wrong call and how to make one of a good one; bad_inputs.py has those of every op."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Args = dict[str, Any]
FLOATS = "bfloat16, float16 or float32"
E4M3 = torch.float8_e4m3fn


@dataclass(frozen=True)
class Bad:
    """One wrong call: what is wrong, how to make it of a good one, and the message, without the op's name."""

    what: str
    spoil: Callable[[Args], Args]
    message: str
    is_out: bool = False

    @property
    def id(self) -> str:
        return self.what.replace(" ", "_") + "_out" * self.is_out


def put(**values: Any) -> Callable[[Args], Args]:
    """Replace arguments; a callable gets the old value."""
    return lambda args: args | {k: v(args[k]) if callable(v) else v for k, v in values.items()}


def as_dtype(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda t: t.to(dtype)


def col_major(t: Tensor) -> Tensor:
    """The same values, with a first dimension of stride 1."""
    return t.mT.contiguous().mT


def one_wider(t: Tensor) -> Tensor:
    return torch.cat([t, t[..., :1]], -1)


def row_strided(t: Tensor) -> Tensor:
    return torch.empty((*t.shape[:-1], t.size(-1) + 8), dtype=t.dtype, device=t.device)[..., : t.size(-1)]


LAST_DIM = "expected a contiguous last dimension (stride 1), got stride {}; call .contiguous()"
DENSE = "expected a contiguous tensor, got a strided one; allocate it with torch.empty"
