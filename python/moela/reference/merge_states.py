"""Definition of ``merge_states``: attention over two sets of keys from the attention over each."""

import torch
from torch import Tensor


def merge(
    out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(out [..., D], lse [...], the weights of a and of b [...]), in float64."""
    a, b = lse_a.double(), lse_b.double()
    top = torch.maximum(a, b)  # NaN wins
    # Inf - Inf is NaN, and so is every result of a state whose lse is NaN or +Inf.
    e_a = torch.where(a == -torch.inf, 0.0, torch.exp(a - top))
    e_b = torch.where(b == -torch.inf, 0.0, torch.exp(b - top))
    total = e_a + e_b
    weight_a, weight_b = (torch.where(total == 0, 0.0, e / total) for e in (e_a, e_b))
    # Selected, as 0 * NaN is NaN, and -0 + 0 is 0.
    is_empty_a, is_empty_b = (a == -torch.inf)[..., None], (b == -torch.inf)[..., None]
    from_a = torch.where(is_empty_a, 0.0, weight_a[..., None] * out_a.double())
    from_b = torch.where(is_empty_b, 0.0, weight_b[..., None] * out_b.double())
    out = torch.where(is_empty_a, from_b, torch.where(is_empty_b, from_a, from_a + from_b))  # [..., D]
    return out, top + torch.log(total), weight_a, weight_b


def merge_states(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """The specification of ``moela.merge_states``."""
    out, lse, _, _ = merge(out_a, lse_a, out_b, lse_b)
    return out.to(out_a.dtype), lse.float()
