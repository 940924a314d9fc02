"""Definition of ``indexer_topk``: where the largest logits of each row are."""

import torch
from torch import Tensor


def indexer_topk(
    logits: Tensor,
    topk: int,
    ks: Tensor | None = None,
    ke: Tensor | None = None,
    block_table: Tensor | None = None,
    page_size: int | None = None,
    request_ids: Tensor | None = None,
) -> Tensor:
    """The specification of ``moela.indexer_topk``."""
    lead, S = logits.shape[:-1], logits.size(-1)
    rows = logits.reshape(lead.numel(), S)  # [M, S]
    column = torch.arange(S, device=logits.device)
    begin = _column(rows, ks, 0)  # [M, 1]
    is_seen = (begin <= column) & (column < _column(rows, ke, S)) & (rows != -torch.inf)
    # Stable: of equal ones the first is taken. NaN is sorted before every number, and 0 beside -0.
    order = rows.masked_fill(~is_seen, -torch.inf).sort(dim=-1, descending=True, stable=True).indices
    chosen = order[:, :topk]  # [M, min(topk, S)]
    chosen = torch.where(is_seen.gather(1, chosen), chosen, S).sort(-1).values
    is_chosen = chosen < S
    if block_table is not None:
        chosen, is_chosen = _slots(chosen - begin, is_chosen, block_table, page_size, request_ids, lead)
    indices = logits.new_full((rows.size(0), topk), -1, dtype=torch.int32)
    indices[:, : chosen.size(1)] = torch.where(is_chosen, chosen, -1).int()
    return indices.view(*lead, topk)


def _column(rows: Tensor, values: Tensor | None, otherwise: int) -> Tensor:
    if values is None:
        return torch.full((rows.size(0), 1), otherwise, device=rows.device)
    return values.reshape(-1, 1).long()


def _slots(
    position: Tensor,
    is_chosen: Tensor,
    block_table: Tensor,
    page_size: int,
    request_ids: Tensor | None,
    lead: torch.Size,
) -> tuple[Tensor, Tensor]:
    """Positions [M, n] of tokens in their request -> (slots, which are ones) [M, n]."""
    B, num_blocks = block_table.shape
    if request_ids is None:
        request = torch.arange(position.size(0), device=position.device) // max(lead[1:].numel(), 1)
    else:
        request = request_ids.reshape(-1).long()
    request = request[:, None].expand_as(position)  # [M, n]
    block = position // page_size
    is_chosen = is_chosen & (request >= 0) & (request < B) & (block < num_blocks)
    page = torch.zeros_like(position)
    page[is_chosen] = block_table[request[is_chosen], block[is_chosen]].long()
    return page * page_size + position % page_size, is_chosen
