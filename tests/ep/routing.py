"""Which experts the tokens of each rank want: the ways in which routing is hard."""

from typing import NamedTuple

import torch
from torch import Tensor


class Tokens(NamedTuple):
    """Of one rank."""

    x: Tensor  # [T, hidden] float32: no two rows of any rank are the same
    topk_ids: Tensor
    topk_weights: Tensor


CASES = ("uniform", "one expert", "one rank", "repeated", "dropped", "few", "nothing")


def tokens(case: str, R: int, E: int, topk: int, hidden: int, max_tokens: int, seed: int = 0) -> list[Tokens]:
    """By rank. Rank 0 has max_tokens, the others fewer; "few": all but one rank have none."""
    g = torch.Generator().manual_seed(seed)
    result = []
    for rank in range(R):
        T = max_tokens if rank == 0 else int(torch.randint(0, max_tokens + 1, (), generator=g))
        if case == "few":
            T = 3 if rank == R - 1 else 0
        order = torch.rand(T, max(E, topk), generator=g).argsort(dim=1)  # distinct where there are enough
        ids = order[:, :topk] % E
        if case == "one expert":
            ids[:] = E // 2
        if case == "one rank":  # several experts of a token on the same rank
            ids %= -(-E // R)
        if case == "repeated":
            ids[:, -1] = ids[:, 0]
        if case == "dropped":
            strange = torch.tensor([-1, E, 2**40, -(2**63), 2**31])[torch.randint(5, ids.shape, generator=g)]
            ids = torch.where(torch.rand(ids.shape, generator=g) < 0.5, strange, ids)
        if case == "nothing":
            ids[:] = -1
        x = torch.randn(T, hidden, generator=g)
        result.append(Tokens(x, ids, torch.rand(T, topk, generator=g)))
    return result
