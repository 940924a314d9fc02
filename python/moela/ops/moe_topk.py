"""The router of a layer of experts: which experts a token goes to, and with which weights."""

import math
from typing import Any

import torch
from torch import Tensor

from moela.ops import _check
from moela.ops._spec import Autograd, OpSpec, exactly, register
from moela.reference import moe_topk as reference
from moela.reference.moe_topk import EPSILON

OP = "moe_topk"
SCORINGS = ("softmax", "sigmoid", "sqrtsoftplus")
GROUP_SCORES = ("max", "top2sum")


def moe_topk(
    logits: Tensor,
    topk: int,
    *,
    scoring: str = "softmax",
    bias: Tensor | None = None,
    num_groups: int = 1,
    topk_groups: int = 1,
    group_score: str = "max",
    renormalize: bool = False,
    scaling: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Choose ``topk`` of E experts per token by the largest ``score(logits) + bias``, and weigh them.

    1. score = softmax(logits) over all E, sigmoid(logits), or sqrt(ln(1 + e^logits)), in float32.
    2. choice = score + bias. Without a bias choice = logits: score grows with the logit, so the experts are
       the same, and two logits whose scores round to the same float32 are still told apart.
    3. With topk_groups < num_groups the experts, in num_groups equal runs, compete by group: a group counts
       as the largest choice in it ("max"), or as the sum of its two largest score + bias ("top2sum"; of one,
       where it has one expert). The topk_groups best stay; the others' experts are never chosen, whatever
       the signs of the values.
    4. topk_ids: the topk best choices of the groups that stayed, the best first.
    5. topk_weights: the scores of these, without bias. With renormalize each is divided by (their float32
       sum, slot after slot, + 1e-20). Then times scaling, always.

    Among equal values the lowest index wins, for experts and for groups; -0 equals 0. A -Inf logit is an
    expert with score 0. A row in which a score, a choice or a group's value is NaN (a NaN logit or bias; for
    softmax also a logit of +Inf, or none above -Inf) gets the experts 0 .. topk - 1, which exist and are
    distinct, and NaN as each of its weights, so that it is seen downstream.

    How models say it. Mixtral, Qwen3-MoE: renormalize=True. gpt-oss takes the softmax of the chosen logits:
    that is renormalize=True too, as (e^x_i / Z) / sum of the chosen (e^x_j / Z) has no Z in it; add its
    router's bias to the logits before. DeepSeek-V2: num_groups, topk_groups, scaling. DeepSeek-V3, Kimi-K2,
    GLM ("noaux_tc"): scoring="sigmoid", bias, group_score="top2sum", renormalize=True, scaling. DeepSeek-V4:
    scoring="sqrtsoftplus", bias, renormalize=True, scaling.

    Args:
        logits: [T, E] float32, bfloat16 or float16, last dimension contiguous. T may be 0.
        topk: 1 .. the number of experts in topk_groups groups.
        scoring: "softmax", "sigmoid" or "sqrtsoftplus".
        bias: [E] float32, bfloat16 or float16, for the choice only; it gets no gradient.
        num_groups: divides E.
        topk_groups: 1 .. num_groups.
        group_score: "max" or "top2sum".
        renormalize: whether the weights of a token sum to scaling.
        scaling: finite.

    Returns:
        topk_weights [T, topk] float32 and topk_ids [T, topk] int32. The weights are differentiable with
        respect to logits, for the ids as they are.

    Numerics: bit by bit those of moela.reference.moe_topk, on every backend: the choice can hang on the last
        bit of a score. Its scores have a relative error below 2^-24 (12 + d), with d = 0, or for softmax how
        far the logit is below the largest; a sigmoid, or a softplus before its root, below 2^-126 has
        an error of 2^-149 instead. A row of the results depends on that row of logits only.

    Source: DeepSeek-V3, inference/model.py, Gate (scores, groups, -Inf for what is masked); its V2 code
        writes 0 over masked scores, which differs where all others are 0; modeling_mixtral.py and
        modeling_gpt_oss.py of transformers 5.23.0.
    """
    return torch.ops.moela.moe_topk(
        logits,
        topk,
        bias,
        scoring=scoring,
        num_groups=num_groups,
        topk_groups=topk_groups,
        group_score=group_score,
        renormalize=renormalize,
        scaling=scaling,
    )


def moe_topk_out(
    logits: Tensor,
    topk: int,
    *,
    scoring: str = "softmax",
    bias: Tensor | None = None,
    num_groups: int = 1,
    topk_groups: int = 1,
    group_score: str = "max",
    renormalize: bool = False,
    scaling: float = 1.0,
    topk_weights: Tensor,
    topk_ids: Tensor,
) -> None:
    """`moe_topk` into `topk_weights` and `topk_ids`, contiguous."""
    torch.ops.moela.moe_topk_out(
        logits,
        topk,
        bias,
        scoring=scoring,
        num_groups=num_groups,
        topk_groups=topk_groups,
        group_score=group_score,
        renormalize=renormalize,
        scaling=scaling,
        topk_weights=topk_weights,
        topk_ids=topk_ids,
    )


def _check_args(
    logits,
    topk,
    bias=None,
    scoring="softmax",
    num_groups=1,
    topk_groups=1,
    group_score="max",
    renormalize=False,
    scaling=1.0,
) -> None:
    _check.expect_dim(OP, "logits", logits, 2)
    _check.expect_dtype(OP, "logits", logits.dtype, _check.FLOAT_DTYPES)
    _check.expect_last_dim_contiguous(OP, "logits", logits)
    E = logits.size(1)
    _check.expect(scoring in SCORINGS, OP, "scoring", _check.one_of(SCORINGS), scoring)
    if bias is not None:
        _check.expect_dtype(OP, "bias", bias.dtype, _check.FLOAT_DTYPES)
        _check.expect_shape(OP, "bias", bias, [E])
        _check.expect_device(OP, "bias", bias, logits.device, "logits")
    _check.expect(num_groups > 0, OP, "num_groups", "a positive number", num_groups)
    _check.expect(E % num_groups == 0, OP, "num_groups", f"a divisor of E={E}", num_groups)
    is_in_range = 0 < topk_groups <= num_groups
    _check.expect(is_in_range, OP, "topk_groups", f"1 .. num_groups={num_groups}", topk_groups)
    _check.expect(group_score in GROUP_SCORES, OP, "group_score", _check.one_of(GROUP_SCORES), group_score)
    most = E // num_groups * topk_groups
    _check.expect(0 < topk <= most, OP, "topk", f"1 .. {most} (experts in the groups that stay)", topk)
    _check.expect(math.isfinite(scaling), OP, "scaling", "a finite number", f"{scaling:g}")


def _empty(logits, topk, *_, **__) -> tuple[Tensor, Tensor]:
    shape = (logits.size(0), topk)
    return logits.new_empty(shape, dtype=torch.float32), logits.new_empty(shape, dtype=torch.int32)


def make_inputs(
    T: int,
    E: int,
    topk: int,
    scoring: str = "softmax",
    has_bias: bool = False,
    num_groups: int = 1,
    topk_groups: int = 1,
    group_score: str = "max",
    renormalize: bool = False,
    scaling: float = 1.0,
    x_dtype: torch.dtype = torch.float32,
    hostile: bool = True,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Hostile: rows of different size and sign, every third with ties, every fifth with experts at -Inf."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(T, E, generator=g)
    if hostile:
        logits *= torch.exp2(torch.randint(-3, 5, (T, 1), generator=g).float())
        logits += torch.randint(-2, 2, (T, 1), generator=g) * 20.0
        logits[::3] = (logits[::3] / 4).round()
        logits[::5, 1::4] = float("-inf")
    bias = torch.randn(E, generator=g) / 4 if has_bias else None
    return {
        "logits": logits.to(x_dtype).to(device),
        "topk": topk,
        "bias": None if bias is None else bias.to(device),
        "scoring": scoring,
        "num_groups": num_groups,
        "topk_groups": topk_groups,
        "group_score": group_score,
        "renormalize": renormalize,
        "scaling": scaling,
    }


def _setup_context(ctx, inputs, keyword_only_inputs, output) -> None:
    logits, (_, topk_ids) = inputs[0], output
    ctx.mark_non_differentiable(topk_ids)
    ctx.save_for_backward(logits, topk_ids)
    ctx.scoring, ctx.renormalize, ctx.scaling = (
        keyword_only_inputs[name] for name in ("scoring", "renormalize", "scaling")
    )


def _backward(ctx, grad_weights: Tensor, _) -> tuple[Tensor | None, ...]:
    """Of scaling * s_i, or scaling * s_i / (sum_j s_j + 1e-20), for the scores s of the chosen experts."""
    logits, topk_ids = ctx.saved_tensors
    x, ids = logits.float(), topk_ids.long()  # [T, E], [T, topk]
    chosen = x.gather(1, ids)  # [T, topk]
    if ctx.scoring == "softmax":
        p = x.softmax(-1)  # [T, E]
        s = p.gather(1, ids)
    elif ctx.scoring == "sigmoid":
        s = chosen.sigmoid()
        slope = s * (1 - s)
    else:
        s = torch.nn.functional.softplus(chosen).sqrt()
        slope = torch.where(s > 0, chosen.sigmoid() / (2 * s), 0.0)  # at s = 0 the limit of s / 2
    grad_s = ctx.scaling * grad_weights  # [T, topk]
    if ctx.renormalize:
        total = s.sum(-1, keepdim=True) + EPSILON
        grad_s = (grad_s - (grad_s * s).sum(-1, keepdim=True) / total) / total
    if ctx.scoring == "softmax":
        grad = -p * (grad_s * s).sum(-1, keepdim=True)  # [T, E]
        grad = grad.scatter_add(1, ids, grad_s * s)
    else:
        grad = torch.zeros_like(x).scatter(1, ids, grad_s * slope)
    return grad.to(logits.dtype), None, None


def _bytes(T, E, topk, x_bytes=2, **_) -> int:
    return T * (E * x_bytes + topk * 8)


register(
    OpSpec(
        name=OP,
        schema="Tensor logits, int topk, Tensor? bias=None, *, str scoring='softmax', int num_groups=1, "
        "int topk_groups=1, str group_score='max', bool renormalize=False, float scaling=1.0",
        outputs=("topk_weights", "topk_ids"),
        dtype_arg=None,
        check=_check_args,
        empty=_empty,
        reference=reference,
        public=moe_topk,
        make_inputs=make_inputs,
        bound=exactly(reference),
        cases=(
            {"T": 0, "E": 8, "topk": 2},
            {"T": 1, "E": 1, "topk": 1},
            {"T": 17, "E": 8, "topk": 2, "renormalize": True, "x_dtype": torch.bfloat16},
            {"T": 6, "E": 128, "topk": 4, "renormalize": True},
            {"T": 7, "E": 160, "topk": 6, "num_groups": 8, "topk_groups": 3, "scaling": 16.0},
            {"T": 9, "E": 256, "topk": 8, "scoring": "sigmoid", "has_bias": True, "num_groups": 8,
             "topk_groups": 4, "group_score": "top2sum", "renormalize": True, "scaling": 2.5},
            {"T": 5, "E": 384, "topk": 6, "scoring": "sqrtsoftplus", "has_bias": True, "renormalize": True,
             "scaling": 1.5},
            {"T": 5, "E": 45, "topk": 10, "has_bias": True, "num_groups": 9, "topk_groups": 2,
             "group_score": "top2sum", "x_dtype": torch.float16},
            {"T": 4, "E": 12, "topk": 3, "scoring": "sigmoid", "num_groups": 12, "topk_groups": 5,
             "group_score": "top2sum"},
            {"T": 3, "E": 7, "topk": 7, "scoring": "sqrtsoftplus"},
        ),
        flops=lambda T, E, **_: T * E * 25,  # an exponential has 23 operations; a sum, a quotient
        bytes=_bytes,
        batch_args=("logits",),
        autograd=Autograd(_setup_context, _backward),
    )
)  # fmt: skip
