"""What autograd is told of layers that have no derivative."""

import torch
from torch import Tensor


def is_recorded(*tensors: Tensor | None) -> bool:
    """Whether autograd records what is made of these."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
