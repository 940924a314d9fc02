"""Definition of ``moe_permute``: a stable sort of (token, slot) pairs by expert."""

import torch
from torch import Tensor


def moe_permute(x: Tensor, topk_ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """The specification of ``moela.moe_permute``."""
    topk = topk_ids.size(1)
    ids = topk_ids.flatten().long()  # [T * topk], pair token * topk + slot
    is_here = (ids >= 0) & (ids < num_experts)
    experts = torch.where(is_here, ids, num_experts)  # what is dropped goes last
    order = experts.argsort(stable=True)  # [T * topk]: the pair of each row
    position = torch.empty_like(order)
    position[order] = torch.arange(len(order), device=ids.device)  # the row of each pair
    inverse = torch.where(is_here, position, -1).view(topk_ids.shape).int()  # [T, topk]
    counts = torch.zeros(num_experts + 1, dtype=torch.long, device=ids.device)
    counts.scatter_add_(0, experts, torch.ones_like(experts))  # no bincount: it waits for the device
    ends = counts[:num_experts].cumsum(0)  # [num_experts]
    expert_offsets = torch.nn.functional.pad(ends, (1, 0)).int()  # [num_experts + 1]
    x_sorted = x[order // max(topk, 1)]  # [T * topk, H]
    is_dropped = torch.arange(len(order), device=ids.device) >= expert_offsets[-1]
    x_sorted.view(torch.uint8).masked_fill_(is_dropped[:, None], 0)  # bytes: e8m0 has no 0
    return x_sorted, expert_offsets, inverse
