"""Triton backend of ``moe_topk``.

The scores are the definition's sequence of float32 operations, so it is compiled without fused multiply-adds.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from moela.kernels import _fp8
from torch import Tensor

SCORINGS = {"softmax": 0, "sigmoid": 1, "sqrtsoftplus": 2}


@dataclass(frozen=True)
class Plan:
    BLOCK_T: int  # tokens of one program
    num_warps: int


def plan(padded_experts: int, interpreted: bool) -> Plan:
    """A warp per token. The interpreter's time is programs, so it gets many tokens in each."""
    if interpreted:
        return Plan(BLOCK_T=64, num_warps=1)
    block_t = 4 if padded_experts <= 512 else 1
    return Plan(BLOCK_T=block_t, num_warps=4)


@triton.jit
def exp_nonpositive(t):
    """e^t for t <= 0; NaN stays."""
    t = tl.where(t < -104.0, -104.0, t)
    shifted = t * 1.44269504 + 12582912.0
    n = shifted - 12582912.0
    r = (t - n * 0.693359375) - n * -2.12194440e-4
    p = r * (1 / 5040) + (1 / 720)
    p = p * r + (1 / 120)
    p = p * r + (1 / 24)
    p = p * r + (1 / 6)
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    whole = shifted.to(tl.int32, bitcast=True) - 0x4B400000
    half = whole >> 1
    p = p * ((half + 127) << 23).to(tl.float32, bitcast=True)
    return p * ((whole - half + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def log1p(e):
    """ln(1 + e) of 0 <= e <= 1."""
    q = tl.div_rn(e + e, e + 2.0)
    r2 = q * q * 0.25
    p = r2 * (1 / 15) + (1 / 13)
    p = p * r2 + (1 / 11)
    p = p * r2 + (1 / 9)
    p = p * r2 + (1 / 7)
    p = p * r2 + (1 / 5)
    p = p * r2 + (1 / 3)
    return q * (p * r2 + 1.0)


@triton.jit
def key_of(x):
    """Integers in the order of the floats; -0 has the key of 0."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def scores_of(x, is_expert, SCORING: tl.constexpr):
    """[BLOCK_T, NUM_GROUPS, GROUP] -> the same; what is no expert counts nowhere."""
    if SCORING == 0:
        most = tl.max(tl.max(x, 2), 1)[:, None, None]  # [BLOCK_T, 1, 1]
        e = exp_nonpositive(x - most)
        terms = tl.where(is_expert & (e == e), e, 0.0) * 1099511627776.0  # 2^40
        total = tl.sum(tl.sum(terms.to(tl.int64), 2), 1)[:, None, None]  # exact
        return tl.div_rn(e, total.to(tl.float32) * 9.094947017729282e-13)
    e = exp_nonpositive(-tl.abs(x))
    if SCORING == 1:
        return tl.div_rn(tl.where(x >= 0.0, 1.0, e), e + 1.0)
    return tl.sqrt_rn(tl.where(x < 0.0, 0.0, x) + log1p(e))


@triton.jit
def best_of(rank, NEVER: tl.constexpr):
    """[BLOCK_T, n] ranks -> (the largest of each row, where it is); two of a row are equal only at NEVER."""
    best = tl.max(rank, 1)[:, None]  # [BLOCK_T, 1]
    return best, (rank == best) & (rank != NEVER)


@triton.jit
def _moe_topk_kernel(
    logits_ptr, bias_ptr, weights_ptr, ids_ptr,
    T, E, num_groups, topk_groups, scaling, stride_lt,
    TOPK: tl.constexpr, TOPK_PADDED: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr,
    SCORING: tl.constexpr, HAS_BIAS: tl.constexpr, TOP2SUM: tl.constexpr, LIMITED: tl.constexpr,
    RENORMALIZE: tl.constexpr, BLOCK_T: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One program owns the results of BLOCK_T tokens.

    Grid: (cdiv(T, BLOCK_T),). Invariant: a tile is [BLOCK_T, GROUPS, GROUP], both padded to powers of two;
    what is no expert has the rank NEVER, as have experts of groups that are out and those already chosen.
    A rank is the key of a value above the bits of an index that is larger for lower indices.
    """
    NEVER: tl.constexpr = -(2**63)
    size = E // num_groups
    token = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)  # [BLOCK_T]
    group = tl.arange(0, GROUPS)[None, :, None]
    place = tl.arange(0, GROUP)[None, None, :]
    is_expert = (group < num_groups) & (place < size)  # [1, GROUPS, GROUP]
    mask = is_expert & (token < T)[:, None, None]
    expert = group * size + place  # [1, GROUPS, GROUP]
    ptrs = logits_ptr + token[:, None, None] * stride_lt + expert
    x = _fp8.to_float32(tl.load(ptrs, mask=mask, other=float("-inf")), INTERPRETED)
    score = scores_of(x, is_expert, SCORING)
    choice = x
    judged = score if TOP2SUM else x
    if HAS_BIAS:
        bias = tl.load(bias_ptr + expert, mask=is_expert, other=0.0)
        choice = score + _fp8.to_float32(bias, INTERPRETED)
        judged = choice
    bad = is_expert & ((score != score) | (choice != choice))
    is_bad = tl.max(tl.max(bad.to(tl.int32), 2), 1)[:, None]  # [BLOCK_T, 1]
    rank = (key_of(choice).to(tl.int64) << 32) | (0x7FFFFFFF - expert)
    rank = tl.where(mask, rank, NEVER)

    if LIMITED:
        key = tl.where(mask, key_of(judged).to(tl.int64) * GROUP + (GROUP - 1 - place), NEVER)
        first = tl.max(key, 2)[:, :, None]  # [BLOCK_T, GROUPS, 1]
        value = tl.sum(tl.where(key == first, judged, 0.0), 2)  # [BLOCK_T, GROUPS]
        if TOP2SUM and GROUP > 1:
            second = tl.max(tl.where(key == first, NEVER, key), 2)[:, :, None]
            other = tl.where((key == second) & (second != NEVER), judged, 0.0)
            value = value + tl.sum(other, 2)
        groups = tl.arange(0, GROUPS)[None, :]
        bad_value = (groups < num_groups) & (value != value)  # [BLOCK_T, GROUPS]
        is_bad = is_bad | tl.max(bad_value.to(tl.int32), 1)[:, None]
        group_rank = (key_of(value).to(tl.int64) << 32) | (0x7FFFFFFF - groups)
        group_rank = tl.where((groups < num_groups) & (token < T)[:, None], group_rank, NEVER)
        stays = tl.zeros([BLOCK_T, GROUPS], dtype=tl.int32)
        for _ in range(topk_groups):
            _best, is_best = best_of(group_rank, NEVER)
            stays = tl.where(is_best, 1, stays)
            group_rank = tl.where(is_best, NEVER, group_rank)
        rank = tl.where(stays[:, :, None] != 0, rank, NEVER)

    rank = tl.reshape(rank, [BLOCK_T, GROUPS * GROUP])
    score = tl.reshape(score, [BLOCK_T, GROUPS * GROUP])
    slot = tl.arange(0, TOPK_PADDED)[None, :]
    weights = tl.zeros([BLOCK_T, TOPK_PADDED], dtype=tl.float32)
    ids = tl.zeros([BLOCK_T, TOPK_PADDED], dtype=tl.int32)
    total = tl.zeros([BLOCK_T, 1], dtype=tl.float32)
    for i in range(TOPK):
        best, is_best = best_of(rank, NEVER)
        weight = tl.sum(tl.where(is_best, score, 0.0), 1)[:, None]  # [BLOCK_T, 1]
        total += weight
        weights = tl.where(slot == i, weight, weights)
        ids = tl.where(slot == i, 0x7FFFFFFF - (best & 0xFFFFFFFF).to(tl.int32), ids)
        rank = tl.where(is_best, NEVER, rank)
    if RENORMALIZE:
        weights = tl.div_rn(weights, total + 1e-20)
    weights = tl.where(is_bad != 0, float("nan"), weights * scaling)
    ids = tl.where(is_bad != 0, slot, ids)
    out = token[:, None] * TOPK + slot
    out_mask = (token < T)[:, None] & (slot < TOPK)
    tl.store(weights_ptr + out, weights, mask=out_mask)
    tl.store(ids_ptr + out, ids, mask=out_mask)


def launch(
    logits: Tensor,
    topk: int,
    bias: Tensor | None = None,
    scoring: str = "softmax",
    num_groups: int = 1,
    topk_groups: int = 1,
    group_score: str = "max",
    renormalize: bool = False,
    scaling: float = 1.0,
    *,
    out: tuple[Tensor, Tensor],
) -> None:
    weights, ids = out
    T, E = logits.shape
    if T == 0:
        return
    groups, group = triton.next_power_of_2(num_groups), triton.next_power_of_2(E // num_groups)
    interpreted = _fp8.target_of(logits.device).interpreted
    p = plan(groups * group, interpreted)
    _moe_topk_kernel[(triton.cdiv(T, p.BLOCK_T),)](
        logits, logits if bias is None else bias.contiguous(), weights, ids,
        T, E, num_groups, topk_groups, scaling, logits.stride(0),
        TOPK=topk, TOPK_PADDED=triton.next_power_of_2(topk), GROUPS=groups, GROUP=group,
        SCORING=SCORINGS[scoring], HAS_BIAS=bias is not None, TOP2SUM=group_score == "top2sum",
        LIMITED=topk_groups < num_groups, RENORMALIZE=renormalize, BLOCK_T=p.BLOCK_T,
        INTERPRETED=interpreted, num_warps=p.num_warps, enable_fp_fusion=False,
    )  # fmt: skip
