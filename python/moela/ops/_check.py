"""Argument checks. Every message reads "<op>: <argument>: expected <what>, got <what>[; <what to do>]".

csrc/common/check.h says the same words; tests/ops/test_contract.py holds the two together.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def one_of(words: Sequence[str]) -> str:
    """["a", "b", "c"] -> "a, b or c"."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1]


def expect(ok: bool, op: str, arg: str, expected: object, got: object, todo: str = "") -> None:
    """Raise ValueError unless ok. Works on symbolic sizes, where it becomes a guard."""
    torch._check_value(
        ok, lambda: f"{op}: {arg}: expected {expected}, got {got}" + (f"; {todo}" if todo else "")
    )


def expect_dim(op: str, arg: str, t: Tensor, dim: int) -> None:
    expect(t.dim() == dim, op, arg, f"a {dim}-D tensor", f"{t.dim()}-D")


def expect_min_dim(op: str, arg: str, t: Tensor, dim: int) -> None:
    expect(t.dim() >= dim, op, arg, f"a tensor of at least {dim} dimension{'s' * (dim > 1)}", f"{t.dim()}-D")


def expect_dtype(op: str, arg: str, dtype: torch.dtype, allowed: Sequence[torch.dtype]) -> None:
    expect(dtype in allowed, op, arg, one_of([dtype_name(d) for d in allowed]), dtype_name(dtype))


def expect_shape(op: str, arg: str, t: Tensor, shape: Sequence[int]) -> None:
    same = t.dim() == len(shape)
    for got, want in zip(t.shape, shape, strict=False):
        same = same and got == want
    expect(same, op, arg, f"shape {list(shape)}", f"{list(t.shape)}")


def expect_device(op: str, arg: str, t: Tensor, device: torch.device, owner: str) -> None:
    expect(t.device == device, op, arg, f"device {device} (that of {owner})", t.device, f"move {arg} there")


def expect_last_dim_contiguous(op: str, arg: str, t: Tensor) -> None:
    # A dimension of one element has no meaningful stride.
    ok = t.size(-1) <= 1 or t.stride(-1) == 1
    expect(
        ok, op, arg, "a contiguous last dimension (stride 1)", f"stride {t.stride(-1)}", "call .contiguous()"
    )


def expect_contiguous(op: str, arg: str, t: Tensor) -> None:
    expect(t.is_contiguous(), op, arg, "a contiguous tensor", "a strided one", "allocate it with torch.empty")
