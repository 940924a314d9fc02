"""Definition of ``indexer_logits``: what each key is worth to each query, summed over the indexer's heads."""

import torch
from torch import Tensor


def logits_of(q: Tensor, k: Tensor, sf_k: Tensor, weights: Tensor) -> Tensor:
    """q [H, D], k [S, D], sf_k [S], weights [H] -> [S] float64."""
    products = (k.double() @ q.double().T).relu()  # [S, H]; of NaN NaN
    return sf_k.double() * (products * weights.double()).sum(-1)


def indexer_logits(q: Tensor, k: Tensor, sf_k: Tensor, weights: Tensor, ks: Tensor, ke: Tensor) -> Tensor:
    """The specification of ``moela.indexer_logits``."""
    T, S = q.size(0), k.size(0)
    logits = torch.empty(T, S, dtype=torch.float32, device=q.device)
    key = torch.arange(S, device=q.device)
    for t in range(T):
        is_seen = (ks[t] <= key) & (key < ke[t])  # [S]
        logits[t] = logits_of(q[t], k, sf_k, weights[t]).masked_fill(~is_seen, -torch.inf).float()
    return logits
