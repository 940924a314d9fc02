"""What autograd is told of layers that have no derivative."""

import torch
from torch import Tensor

from moela.ops._spec import NoDerivative


def is_recorded(*tensors: Tensor | None) -> bool:
    """Whether autograd records what is made of these."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def without_derivative(message: str, result: Tensor, *inputs: Tensor | None) -> Tensor:
    """`result`, made of `inputs` under no_grad; backward raises NotImplementedError(message)."""
    tracked = [t for t in inputs if t is not None and t.requires_grad]
    return NoDerivative.apply(message, result, *tracked)
