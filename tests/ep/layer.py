"""A layer whose sums are exact, so that every way to compute it gives the same bits: small whole numbers."""

import moela
import torch
from torch import Tensor

E, TOPK, HIDDEN, MAX_TOKENS = 7, 3, 4, 6
SETTINGS = {"num_experts": E, "hidden": HIDDEN, "topk": TOPK, "max_tokens": MAX_TOKENS, "deadline": 20.0}


def inputs(rank: int, T: int = MAX_TOKENS) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, topk_ids, topk_weights and the gradient of the result."""
    g = torch.Generator().manual_seed(rank)
    x, grad = torch.randint(-4, 5, (2, T, HIDDEN), generator=g).float()
    ids = torch.randint(-1, E + 1, (T, TOPK), generator=g)
    return (
        x.requires_grad_(),
        ids,
        torch.randint(-3, 4, ids.shape, generator=g).float().requires_grad_(),
        grad,
    )


def experts(device: torch.device | str = "cpu") -> Tensor:
    """[E, HIDDEN]: what each expert multiplies a row by."""
    return torch.arange(1.0, E * HIDDEN + 1, device=device).view(E, HIDDEN) % 5 - 2


def dense(x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """On one rank, with all experts."""
    is_here = (ids >= 0) & (ids < E)
    scales = (
        torch.where(is_here, weights, 0)[..., None] * experts(x.device)[ids.clamp(0, E - 1)]
    )  # [T, topk, HIDDEN]
    return x * scales.sum(1)


def spread(x: Tensor, ids: Tensor, weights: Tensor, group: str, layout: str, dispatch=None) -> Tensor:
    """By dispatch, this rank's experts, and combine."""
    received = (dispatch or moela.ep_dispatch)(x, ids, weights, group=group, layout=layout)
    y, weights = local(received, layout, group)
    return moela.ep_combine(y, received.handle, group=group, topk_weights=weights)


def local(received, layout: str, group: str) -> tuple[Tensor, Tensor | None]:
    """What this rank's experts make of what came, and the weights that combine takes."""
    buffer = moela.ep.buffer_of(group, "test")
    mine = experts(received.x.device)[buffer.first_expert : buffer.first_expert + buffer.num_local_experts]
    if len(mine) == 0:
        return received.x * 0, None if layout == "compact" else received.topk_weights
    if layout == "masked":
        return received.x * mine[:, None], received.topk_weights
    if layout == "compact":
        here = received.topk_ids >= 0
        weights = torch.where(here, received.topk_weights, 0)[..., None]
        return received.x * (weights * mine[received.topk_ids.clamp(min=0)]).sum(1), None
    row = torch.arange(received.x.size(0), device=mine.device)
    expert = torch.searchsorted(received.expert_offsets[1:].contiguous(), row, right=True)
    return received.x * mine[expert.clamp(max=len(mine) - 1)], received.topk_weights
