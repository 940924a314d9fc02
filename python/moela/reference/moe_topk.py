"""Definition of ``moe_topk``: every router as one sequence of float32 operations.

A choice of experts can hang on the last bit of a score, so scores are defined bit by bit: sums, products,
quotients and square roots of float32, each rounded once and none fused, and one sum that is exact and so has
no order. Every backend runs the same sequence, so every backend chooses the same experts.
"""

import torch
from torch import Tensor

EPSILON = 1e-20  # added to the sum that weights are divided by, as in DeepSeek-V3's router
FIXED_POINT = 2.0**40  # what the terms of a softmax are multiplied by before they become integers

_LOG2E, _LN2_HIGH, _LN2_LOW = 1.44269504, 355 / 512, -2.12194440e-4
_MAGIC = 1.5 * 2**23  # adding it rounds to an integer, which is then in the low bits
_EXP_TERMS = tuple(1 / n for n in (5040, 720, 120, 24, 6, 2, 1, 1))
_ATANH_TERMS = tuple(1 / n for n in (15, 13, 11, 9, 7, 5, 3, 1))


def horner(terms: tuple[float, ...], x: Tensor) -> Tensor:
    """terms[0] x^n + ... + terms[n], two roundings a step."""
    p = torch.full_like(x, terms[0])
    for term in terms[1:]:
        p = p * x + term
    return p


def exp(t: Tensor) -> Tensor:
    """e^t of float32 t <= 0, relative error below 4 * 2^-24 where that is a normal number; NaN stays.

    t = n ln 2 + r with |r| <= 0.35 and n >= -150. n ln 2 is subtracted in two parts, of which the first,
    355/512 n, and its difference are exact. 2^n is two factors, so that only the last product may be
    subnormal.
    """
    t = t.clamp(min=-104.0)  # e^-104 rounds to 0
    shifted = t * _LOG2E + _MAGIC
    n = shifted - _MAGIC
    r = (t - n * _LN2_HIGH) - n * _LN2_LOW
    whole = shifted.view(torch.int32) - 0x4B400000  # the bits of _MAGIC
    half = whole >> 1
    powers = [((e + 127) << 23).view(torch.float32) for e in (half, whole - half)]
    return horner(_EXP_TERMS, r) * powers[0] * powers[1]


def log1p(e: Tensor) -> Tensor:
    """ln(1 + e) of 0 <= e <= 1: 2 artanh(q / 2), q = 2e / (2 + e) <= 2/3, less (q/2)^17 / 17 and beyond."""
    q = (e + e) / (e + 2)
    return q * horner(_ATANH_TERMS, q * q * 0.25)


def softmax(x: Tensor) -> Tensor:
    """The terms, at most 1 each, are summed in units of 2^-40 as integers: exactly, in whatever order."""
    e = exp(x - x.amax(-1, keepdim=True))
    total = (e * FIXED_POINT).long().sum(-1, keepdim=True)
    return e / (total.float() * (1 / FIXED_POINT))


def sigmoid(x: Tensor) -> Tensor:
    e = exp(-x.abs())
    return torch.where(x >= 0, torch.ones_like(e), e) / (e + 1)


def sqrtsoftplus(x: Tensor) -> Tensor:
    """The root is taken in float64: torch's of float32 is not always the nearest one on the CPU.

    Rounded again it is. The root of a float32 is 2^-51 of itself or more away from the middle between two
    float32, as the square of such a middle ends in a 1 at its 50th bit.
    """
    return (x.clamp(min=0) + log1p(exp(-x.abs()))).double().sqrt().float()


SCORINGS = {"softmax": softmax, "sigmoid": sigmoid, "sqrtsoftplus": sqrtsoftplus}


def ranked(values: Tensor, count: int) -> Tensor:
    """[T, n] -> [T, count]: indices of the largest values, in descending order, ties by lowest index."""
    return values.sort(dim=-1, descending=True, stable=True).indices[:, :count]


def group_values(values: Tensor, num_groups: int, group_score: str) -> Tensor:
    """[T, E] -> [T, num_groups]: the best value of each group, or the sum of its (at most) two best."""
    grouped = values.unflatten(-1, (num_groups, values.size(-1) // num_groups))  # [T, num_groups, E / groups]
    best = grouped.topk(min(2, grouped.size(-1)) if group_score == "top2sum" else 1, -1).values
    return best[..., 0] if best.size(-1) == 1 else best[..., 0] + best[..., 1]


def moe_topk(
    logits: Tensor,
    topk: int,
    bias: Tensor | None = None,
    scoring: str = "softmax",
    num_groups: int = 1,
    topk_groups: int = 1,
    group_score: str = "max",
    renormalize: bool = False,
    scaling: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The specification of ``moela.moe_topk``, line by line that of its docstring."""
    x = logits.float()  # [T, E]
    scores = SCORINGS[scoring](x)
    choice = x if bias is None else scores + bias.float()
    is_nan = scores.isnan().any(-1) | choice.isnan().any(-1)  # [T]
    order = ranked(choice, x.size(-1))  # [T, E]
    if topk_groups < num_groups:
        judged = scores if bias is None and group_score == "top2sum" else choice
        groups = group_values(judged, num_groups, group_score)  # [T, num_groups]
        is_nan |= groups.isnan().any(-1)
        is_kept = torch.zeros_like(groups, dtype=torch.bool)
        is_kept.scatter_(-1, ranked(groups, topk_groups), True)
        is_kept = is_kept.repeat_interleave(x.size(-1) // num_groups, -1)  # [T, E]
        # Stable: those of kept groups first, in the order that they have.
        order = order.gather(-1, ranked(is_kept.gather(-1, order).int(), x.size(-1)))
    ids = torch.where(is_nan[:, None], torch.arange(topk, device=x.device), order[:, :topk])  # [T, topk]
    weights = scores.gather(-1, ids)  # [T, topk]
    if renormalize:
        total = torch.zeros_like(is_nan, dtype=torch.float32)
        for slot in range(topk):
            total = total + weights[:, slot]
        weights = weights / (total + EPSILON)[:, None]
    return (weights * scaling).masked_fill(is_nan[:, None], float("nan")), ids.int()
