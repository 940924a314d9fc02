"""Definition of ``mla_schedule``: which part of a GPU attends which keys of a batch, in whole numbers.

Cost model, in blocks of 64 keys: a block takes what loading its 64 * 1152 bytes takes at a part's share of
the memory rate. Costs are whole numbers, so every backend has the same schedule.
- A piece, keys of one request in one part, costs 1 for the first block, which nothing hides, and the bytes of
  its rows: 1152 of q, 2048 of float32 sums.
- Splitting costs one more piece in the fullest part, 1 for the merge that has to follow, and for each part
  1/32, as a row's merge waits for one piece after the other, and the 2048 bytes of each row, which all parts
  together read again.
"""

import torch
from torch import Tensor

BLOCK = 64  # keys
PIECE_BLOCKS = 32  # of a piece with batch_invariant
UNIT = 1024  # what costs of parts are counted in: 1/1024 block
COLUMNS = 4


def piece_cost(rows: int) -> int:
    """Blocks: 1 + rows * 3200 / (64 * 1152), rounded up."""
    return 1 + (rows * 25 + 575) // 576


def merge_cost(rows: int, num_parts: int) -> int:
    """Of one more part that is used, in units: 1/32 + rows * 2048 / (64 * 1152 * num_parts), rounded up."""
    return UNIT // 32 + (rows * 256 + 9 * num_parts - 1) // (9 * num_parts)


def split_costs(total: Tensor, rows: int, num_parts: int) -> Tensor:
    """[num_parts] int64, in units: what a batch of `total` blocks' worth costs that 1, 2 ... parts share."""
    parts = torch.arange(1, num_parts + 1, device=total.device)
    costs = UNIT * ((total + parts - 1) // parts) + merge_cost(rows, num_parts) * parts
    return costs + UNIT * (piece_cost(rows) + 1) * (parts > 1)


def mla_schedule(seqlens: Tensor, *, rows: int, num_parts: int, batch_invariant: bool = False) -> Tensor:
    """The specification of ``moela.mla_schedule``."""
    B, device, piece = seqlens.size(0), seqlens.device, piece_cost(rows)
    blocks = (seqlens.long().clamp(min=0) + BLOCK - 1) // BLOCK  # [B]
    pieces = ((blocks + PIECE_BLOCKS - 1) // PIECE_BLOCKS).clamp(min=1)  # [B], of batch_invariant
    cost = blocks + piece * (pieces if batch_invariant else 1)
    begin = torch.nn.functional.pad(cost.cumsum(0), (1, 0))  # [B + 1]
    total, part = begin[-1], torch.arange(num_parts + 1, device=device)

    # Where parts begin: at equal distances of cost.
    if batch_invariant:
        share = (total + num_parts - 1) // num_parts
    else:
        costs = split_costs(total, rows, num_parts)
        used = (costs > costs.amin()).int().cumprod(0).sum() + 1  # the first of the cheapest
        share = (total + used - 1) // used
    at = part * share  # [num_parts + 1]
    request = torch.searchsorted(begin[1:].contiguous(), at, right=True)  # B: the end
    offset = at - begin[request]
    if batch_invariant:
        block = offset // (PIECE_BLOCKS + piece) * PIECE_BLOCKS
    else:
        block = (offset - piece).clamp(min=0)
    block = torch.where(request == B, 0, block)
    if not batch_invariant and 0 < B <= num_parts:  # no request is split, if that costs no more
        is_whole = UNIT * (blocks.amax() + piece) <= costs.amin()
        request, block = torch.where(is_whole, part.clamp(max=B), request), torch.where(is_whole, 0, block)

    if batch_invariant:
        first_piece = torch.nn.functional.pad(pieces.cumsum(0), (1, 0))  # [B + 1]
        piece_of_part = first_piece[request] + block // PIECE_BLOCKS
    else:
        cuts = torch.nn.functional.pad((block > 0).cumsum(0), (1, 0))  # [num_parts + 2], before a boundary
        requests = torch.arange(B + 1, device=device)
        first_piece = requests + cuts[torch.searchsorted(request, requests)]
        piece_of_part = request + cuts[1:]

    schedule = seqlens.new_zeros(1 + num_parts + 1 + B + 1, COLUMNS)
    for column, value in enumerate((B, num_parts, rows, int(batch_invariant))):
        schedule[0, column] = value
    parts, requests = schedule[1 : num_parts + 2], schedule[num_parts + 2 :]
    parts[:, 0], parts[:, 1], parts[:, 2] = request, block, piece_of_part
    requests[:, 0], requests[:B, 1] = first_piece, seqlens
    return schedule
