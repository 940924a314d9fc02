"""Error bounds and hostile inputs, for our tests and for those of who builds on moela."""

import torch
from torch import Tensor

# What a float32 accumulator may lose, in units of sum_k |a||b|. In every backend a product passes at most
# 128 + K/128 additions of 2^-24 each; were all to err the same way that would be 2^-20 already at K = 2^11,
# so this is a bound on errors that do not conspire (they grow with the root of the chain): sixteen
# roundings' worth, up to K = 2^15. Not tuned: a dropped product or an operand rounded to bfloat16 is far
# outside.
FLOAT32_SUM = 2.0**-20
# Hopper's fp8 tensor core keeps about 13 fraction bits between promotions; not yet measured here.
HOPPER_FP8_SUM = 2.0**-11


def assert_within(got: Tensor, exact: Tensor, error: Tensor, what: str = "") -> None:
    """Assert |got - exact| <= error in every element; where exact is NaN, got must be, and nowhere else.

    One wrong element fails however large the tensor is.
    """
    assert got.shape == exact.shape, f"{what}: expected shape {list(exact.shape)}, got {list(got.shape)}"
    got = got.to(exact.device).double()
    excess = (got - exact).abs() - error
    # An infinity that is right has a difference of NaN; one that is wrong has an excess of inf.
    right = (excess <= 0) | (got == exact) | (got.isnan() & exact.isnan())
    if right.all():
        return
    wrong = (~right).nonzero()
    index = tuple(wrong[0].tolist())
    raise AssertionError(
        f"{what}: {len(wrong)} of {got.numel()} elements out of bounds, first at {list(index)}: "
        f"got {got[index].item():.9g}, exact {exact[index].item():.9g}, "
        f"allowed error {error[index].item():.3g}"
    )


def poisoned_rows(t: Tensor, extra_rows: int = 3, extra_cols: int = 5) -> Tensor:
    """The same values as a view into a larger tensor whose every other byte is a NaN (0xFF).

    Works for each float type: all bytes 0xFF is NaN in float32, float16, bfloat16, float8_e4m3fn and e8m0fnu.
    """
    padded = (*t.shape[:-2], t.size(-2) + extra_rows, t.size(-1) + extra_cols)
    storage = torch.full((*padded, t.element_size()), 0xFF, dtype=torch.uint8, device=t.device)
    big = storage.view(t.dtype).squeeze(-1)  # [..., rows + extra_rows, cols + extra_cols]
    view = big[..., : t.size(-2), : t.size(-1)]
    view.copy_(t)
    return view


def same_bits(x: Tensor, y: Tensor) -> bool:
    """Equality of bytes: tells -0 from 0, and holds for NaN."""
    return x.shape == y.shape and x.dtype == y.dtype and torch.equal(_bytes(x), _bytes(y))


def _bytes(t: Tensor) -> Tensor:
    return t.contiguous().view(torch.uint8) if t.dim() else t.reshape(1).view(torch.uint8)
