"""Definition of ``ep_dispatch``: every rank's inputs in, every rank's outputs out, row by row."""

import torch
from torch import Tensor

# x, topk_ids (compact) or None, topk_weights, expert_offsets, expert_counts or None, and the places:
# (source, token, k) -> its row, all dimensions of rows counted as one.
Received = tuple[Tensor, Tensor | None, Tensor, Tensor | None, dict[tuple[int, int, int], int]]


def local_experts(num_experts: int, num_ranks: int, rank: int) -> range:
    """As torch.tensor_split cuts them."""
    cut = [len(part) for part in torch.arange(num_experts).tensor_split(num_ranks)]
    return range(sum(cut[:rank]), sum(cut[: rank + 1]))


def ep_dispatch(
    x: list[Tensor],
    topk_ids: list[Tensor],
    topk_weights: list[Tensor],
    num_experts: int,
    layout: str,
    capacity: list[int],
) -> list[Received]:
    """The specification of ``moela.ep_dispatch``. Each list has an element per rank; x: [T, hidden] uint8."""
    return [
        _received(x, topk_ids, topk_weights, local_experts(num_experts, len(x), rank), layout, capacity[rank])
        for rank in range(len(x))
    ]


def _received(x, topk_ids, topk_weights, mine: range, layout: str, capacity: int) -> Received:
    hidden, topk = x[0].size(1), topk_ids[0].size(1)
    rows = [
        (source, t)
        for source, ids in enumerate(topk_ids)
        for t, of_token in enumerate(ids.tolist())
        if any(e in mine for e in of_token)
    ]
    pairs = {
        (source, t, k): topk_ids[source][t, k].item() - mine.start
        for source, t in rows
        for k in range(topk)
        if topk_ids[source][t, k].item() in mine
    }
    if layout == "compact":
        number = {row: i for i, row in enumerate(rows)}
        places = {(source, t, k): number[source, t] for source, t, k in pairs}
        shape, experts = (capacity,), None
    else:
        in_order = sorted(pairs, key=pairs.__getitem__)  # stable: then as received, then by k
        counts = torch.tensor([list(pairs.values()).count(e) for e in range(len(mine))], dtype=torch.int32)
        offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()
        places = {pair: i for i, pair in enumerate(in_order)}
        shape, experts = (capacity,), offsets
        if layout == "masked":
            places = {p: i - offsets[pairs[p]].item() + pairs[p] * capacity for p, i in places.items()}
            shape, experts = (len(mine), capacity), counts
    out = torch.zeros((*shape, hidden), dtype=torch.uint8)
    ids = torch.full((capacity, topk), -1, dtype=torch.int32) if layout == "compact" else None
    weights = torch.zeros((*shape, topk) if layout == "compact" else shape)
    for (source, t, k), place in places.items():
        out.flatten(0, -2)[place] = x[source][t]
        if layout == "compact":
            ids[place, k] = pairs[source, t, k]
            weights[place, k] = topk_weights[source][t, k]
        else:
            weights.view(-1)[place] = topk_weights[source][t, k]
    return out, ids, weights, experts, places
