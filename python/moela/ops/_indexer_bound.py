"""What the logits of an indexer in float32 may be off by, per element."""

import torch
from torch import Tensor

from moela.ops._spec import rounding
from moela.reference.indexer_logits import logits_of


def logits_bound(q: Tensor, k: Tensor, sf_k: Tensor, weights: Tensor, accum: float) -> tuple[Tensor, Tensor]:
    """q [H, D], k [S, D], sf_k [S], weights [H] -> (exact [S], allowed error [S]), float64.

    Products of e4m3 numbers are exact in float32, so a head's product is off by what its sum loses, accum
    sum |q||k|; relu makes no difference larger. The sum over heads loses accum sum |w| relu, of which the
    roundings of its products are a part, and the scale factor's product one rounding. What is below the
    smallest float32 may be lost once per head.
    """
    magnitude = k.double().abs() @ q.double().abs().T  # [S, H]
    most = (k.double() @ q.double().T).relu() + accum * magnitude  # of a head's product
    w = weights.double().abs()
    error = sf_k.double().abs() * (accum * (magnitude @ w + most @ w) + len(w) * 2.0**-149)
    exact = logits_of(q, k, sf_k, weights)
    error += rounding(exact.abs() + error, torch.float32)
    return exact, torch.where(exact.isfinite(), error, 0.0)
