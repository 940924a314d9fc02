"""Definition of ``ep_combine``: a token's rows summed per rank, then over the ranks."""

import torch
from torch import Tensor

from moela.reference.ep_dispatch import Received


def ep_combine(
    y: list[Tensor], received: list[Received], T: list[int], topk: int, weighted: bool
) -> list[Tensor]:
    """The specification of ``moela.ep_combine``. Each list has an element per rank; y: [*, hidden].

    received: what the dispatch gave. weighted: y is multiplied by its topk_weights.
    """
    out = [torch.zeros((n, y[0].size(-1))) for n in T]
    for of_rank, (_, ids, weights, _, placed) in zip(y, received, strict=True):
        rows, weights = of_rank.flatten(0, -2), weights.flatten()
        for source, t in dict.fromkeys(pair[:2] for pair in placed):
            places = [placed[source, t, k] for k in range(topk) if (source, t, k) in placed]
            if ids is not None:
                places = places[:1]  # compact: one row, however many experts
            total = torch.zeros(rows.size(1))
            for place in places:
                total += rows[place].float() * weights[place] if weighted else rows[place].float()
            out[source][t] += total.to(of_rank.dtype).float()
    return [total.to(y[0].dtype) for total in out]
