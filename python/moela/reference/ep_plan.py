"""Definition of ``ep_plan``: the order in which a token's rows travel to the ranks of its experts."""

import torch
from torch import Tensor


def ep_plan(topk_ids: Tensor, num_experts: int, num_ranks: int) -> tuple[Tensor, Tensor, Tensor]:
    """The specification of ``moela.ep_plan``."""
    T, topk = topk_ids.shape
    ids = topk_ids.long()  # [T, topk]
    is_here = (ids >= 0) & (ids < num_experts)
    size, rest = divmod(num_experts, num_ranks)
    end = rest * (size + 1)  # the experts before it are on ranks that have one more
    owner = torch.where(ids < end, ids // (size + 1), rest + (ids - end) // max(size, 1))
    owner = torch.where(is_here, owner, num_ranks)  # [T, topk]: the rank; num_ranks: none
    is_sent = torch.zeros((T, num_ranks + 1), dtype=torch.bool, device=ids.device)
    is_sent = is_sent.scatter_(1, owner, True)[:, :num_ranks].T  # [num_ranks, T]: once per rank
    place = is_sent.flatten().cumsum(0).view(num_ranks, T) - 1  # [num_ranks, T], where is_sent
    slots = place.T.gather(1, owner.clamp(max=num_ranks - 1))  # [T, topk]
    slots = torch.where(is_here, slots, -1).int()
    num_rows = T * min(topk, num_ranks)
    place = torch.where(is_sent, place, num_rows)  # [num_ranks, T]: what is not sent goes past the end
    tokens = torch.arange(T, dtype=torch.int32, device=ids.device).expand(num_ranks, T)
    send_rows = ids.new_full((num_rows + 1,), -1, dtype=torch.int32)
    send_rows[place] = tokens
    return send_rows[:num_rows].clone(), is_sent.sum(1).int(), slots
