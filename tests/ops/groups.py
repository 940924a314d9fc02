"""What the tests of the grouped ops share."""

from typing import Any

import torch
from moela import testing
from torch import Tensor

SIZES = (0, 1, 2, 63, 64, 65, 0, 127, 128, 129)  # of groups: around the row tiles that kernels have


def nan_like(t: Tensor) -> Tensor:
    """Bytes of 0xFF: NaN in every float type."""
    return torch.full_like(t.contiguous().view(torch.uint8), 0xFF).view(t.dtype)


def assert_right(run: Any, inputs: dict[str, Any]) -> Tensor:
    """Within the bound; returns what was got."""
    (got,) = run(inputs)
    [(exact, error)] = run.spec.bound(inputs, run.accum(inputs))
    testing.assert_within(got, exact, error, run.spec.name)
    return got
