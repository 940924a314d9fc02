"""Definition of ``moe_unpermute``: a weighted sum of rows in the order of the slots."""

import torch
from torch import Tensor


def moe_unpermute(y: Tensor, topk_weights: Tensor | None, inverse: Tensor) -> Tensor:
    """The specification of ``moela.moe_unpermute``."""
    is_row = (inverse >= 0) & (inverse < y.size(0))  # [T, topk]
    rows = torch.where(is_row, inverse, 0).long()
    total = y.new_zeros((inverse.size(0), y.size(1)), dtype=torch.float32)  # [T, H]
    if y.size(0) == 0:
        return total.to(y.dtype)
    for slot in range(inverse.size(1)):
        term = y[rows[:, slot]].float()  # [T, H]
        if topk_weights is not None:
            term = term * topk_weights[:, slot, None]
        total = torch.where(is_row[:, slot, None], total + term, total)
    return total.to(y.dtype)
