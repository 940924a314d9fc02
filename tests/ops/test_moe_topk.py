"""moe_topk: the routers of real models, which experts win, and what a row of NaN gets."""

import math
from collections.abc import Callable
from typing import Any

import moela
import pytest
import torch
from moela import testing
from moela.shapes import MODELS
from torch import Tensor

NAN, INF = float("nan"), float("inf")
SCORINGS = ("softmax", "sigmoid", "sqrtsoftplus")
NOAUX_TC = {"scoring": "sigmoid", "group_score": "top2sum", "renormalize": True}


def route(run: Any, logits: Tensor | list, topk: int, **kwargs: Any) -> tuple[Tensor, Tensor]:
    logits = torch.as_tensor(logits).to(run.device)
    if kwargs.get("bias") is not None:
        kwargs["bias"] = torch.as_tensor(kwargs["bias"]).to(run.device)
    weights, ids = run({"logits": logits, "topk": topk} | kwargs)
    return weights.cpu(), ids.cpu()


def chosen(run: Any, row: list[float], topk: int, **kwargs: Any) -> list[int]:
    return route(run, [row], topk, **kwargs)[1][0].tolist()


def random_logits(rows: int, E: int, seed: int = 0, size: float = 2.0) -> Tensor:
    return torch.randn(rows, E, generator=torch.Generator().manual_seed(seed)) * size


# --- the routers of models, written again from their code -------------------------------------------------


def mixtral(x: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    """Also Qwen3-MoE with norm_topk_prob."""
    weights, ids = torch.topk(x.softmax(-1), topk)
    return weights / weights.sum(-1, keepdim=True), ids


def gpt_oss(x: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    """Top-k first, then the softmax of what was chosen."""
    values, ids = torch.topk(x, topk)
    return values.softmax(-1), ids


def deepseek_v2(x: Tensor, topk: int, groups: int, kept: int, scaling: float) -> tuple[Tensor, Tensor]:
    scores = x.softmax(-1)
    best = scores.view(len(x), groups, -1).amax(-1)
    mask = torch.zeros_like(best).scatter(1, best.topk(kept).indices, 1.0)
    mask = mask.repeat_interleave(x.size(1) // groups, 1)
    weights, ids = torch.topk(scores * mask, topk)
    return weights * scaling, ids


def noaux_tc(
    x: Tensor, topk: int, bias: Tensor, groups: int, kept: int, scaling: float
) -> tuple[Tensor, Tensor]:
    """DeepSeek-V3, Kimi-K2, GLM."""
    scores = x.sigmoid()
    choice = scores + bias
    best = choice.view(len(x), groups, -1).topk(2).values.sum(-1)
    mask = torch.ones_like(best, dtype=torch.bool).scatter(1, best.topk(kept).indices, False)
    choice = choice.masked_fill(mask.repeat_interleave(x.size(1) // groups, 1), -INF)
    ids = choice.topk(topk).indices
    weights = scores.gather(1, ids)
    return weights / (weights.sum(-1, keepdim=True) + 1e-20) * scaling, ids


def deepseek_v4(x: Tensor, topk: int, bias: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    scores = torch.nn.functional.softplus(x).sqrt()
    ids = (scores + bias).topk(topk).indices
    weights = scores.gather(1, ids)
    return weights / weights.sum(-1, keepdim=True) * scaling, ids


def router_of(model: str, E: int, topk: int) -> tuple[Callable[..., tuple[Tensor, Tensor]], dict[str, Any]]:
    """(x -> what the model's code computes, our arguments)."""
    bias = random_logits(1, E, seed=7, size=0.1)[0]
    if model.startswith("gpt-oss"):
        return lambda x: gpt_oss(x, topk), {"renormalize": True}
    if model == "deepseek-v2":
        ours = {"num_groups": 8, "topk_groups": 3, "scaling": 16.0}
        return lambda x: deepseek_v2(x, topk, 8, 3, 16.0), ours
    if model == "deepseek-v2-lite":
        return lambda x: deepseek_v2(x, topk, 1, 1, 1.0), {}
    if model.startswith("deepseek-v3"):
        ours = NOAUX_TC | {"bias": bias, "num_groups": 8, "topk_groups": 4, "scaling": 2.5}
        return lambda x: noaux_tc(x, topk, bias, 8, 4, 2.5), ours
    if model.startswith(("kimi", "moonlight", "glm", "mistral-large", "minimax")):
        ours = NOAUX_TC | {"bias": bias, "scaling": 2.827}
        return lambda x: noaux_tc(x, topk, bias, 1, 1, 2.827), ours
    assert model.startswith(("mixtral", "qwen3"))
    return lambda x: mixtral(x, topk), {"renormalize": True}


def assert_same_routing(run: Any, theirs: tuple[Tensor, Tensor], x: Tensor, topk: int, **ours: Any) -> None:
    """Random float32 logits have no two experts so close that another rounding could swap them."""
    weights, ids = route(run, x, topk, **ours)
    assert torch.equal(ids.long(), theirs[1])
    torch.testing.assert_close(weights, theirs[0].float(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("model", MODELS)
def test_routes_as_every_model_does(run, model):
    E, topk = MODELS[model].num_experts, MODELS[model].topk
    theirs, ours = router_of(model, E, topk)
    x = random_logits(3 if run.is_slow else 16, E, seed=3)
    assert_same_routing(run, theirs(x.double()), x, topk, **ours)


def test_routes_as_deepseek_v4_does(run):
    x, bias = random_logits(5, 384, seed=4), random_logits(1, 384, seed=5, size=0.2)[0]
    ours = {"scoring": "sqrtsoftplus", "bias": bias, "renormalize": True, "scaling": 1.5}
    assert_same_routing(run, deepseek_v4(x.double(), 6, bias.double(), 1.5), x, 6, **ours)


# --- which experts win -----------------------------------------------------------------------------------


def brute_force(row: list[float], topk: int, groups: int, kept: int) -> list[int]:
    """Without a bias and with the largest logit as a group's value: nothing but comparisons."""
    size = len(row) // groups
    best = [max(row[g * size : (g + 1) * size]) for g in range(groups)]
    stay = sorted(range(groups), key=lambda g: (-best[g], g))[:kept]
    experts = [e for e in range(len(row)) if e // size in stay]
    return sorted(experts, key=lambda e: (-row[e], e))[:topk]


HOSTILE = {
    "all negative": [-5.0, -3.0, -4.0, -2.0, -9.0, -8.0, -7.0, -6.0],
    "all equal": [1.5] * 8,
    "all equal and negative": [-1.5] * 8,
    "ties across groups": [1.0, 7.0, 7.0, 1.0, 1.0, 7.0, 7.0, 1.0],
    "zeros of both signs": [-0.0, 0.0, -0.0, 0.0, -0.0, 0.0, 0.0, -0.0],
    "huge": [3e38, -3e38, 3.1e38, 1.0, 3e38, 0.0, -3.2e38, 2.0],
    "subnormal": [1e-45, -1e-45, 3e-45, 0.0, 1e-40, -1e-40, 2e-45, 1e-45],
    "scores that underflow": [0.0, -200.0, -300.0, -150.0, -400.0, -201.0, -120.0, -500.0],
    "scores that saturate": [30.0, 40.0, 50.0, 30.0, 90.0, 60.0, 89.0, 30.0],
    "some at -Inf": [-INF, 1.0, -INF, -INF, -INF, -INF, 0.0, -INF],
    "one ulp apart": [1.0, 1.0 + 2**-23, 1.0 - 2**-24, 1.0, 1.0, 1.0 + 2**-22, 1.0, 1.0],
}


@pytest.mark.parametrize("scoring", SCORINGS)
def test_chooses_the_largest_logits_and_the_lowest_of_equal_ones(run, scoring):
    rows = torch.tensor(list(HOSTILE.values())).tolist()  # float32, as the op sees them
    for topk, groups, kept in ((1, 1, 1), (3, 1, 1), (8, 1, 1), (4, 4, 2), (2, 8, 2), (2, 2, 1), (3, 4, 3)):
        choice = {"num_groups": groups, "topk_groups": kept, "scoring": scoring}
        weights, ids = route(run, rows, topk, **choice)
        assert ids.tolist() == [brute_force(row, topk, groups, kept) for row in rows]
        assert not weights.isnan().any()
        assert (weights >= 0).all()


def test_chooses_among_equal_choices_the_lowest_id_with_a_bias_too(run):
    """Few different pairs of logit and bias: equal ones are equal in any arithmetic, others 10^-3 apart."""
    g = torch.Generator().manual_seed(1)
    logits = torch.tensor([-3.0, -1.0, 0.0, 2.0])[torch.randint(4, (6, 60), generator=g)]
    bias = torch.tensor([-0.7, 0.0, 0.25])[torch.randint(3, (60,), generator=g)]
    exact = logits.double().sigmoid() + bias.double()
    different = exact.unique()
    assert (different[1:] - different[:-1])[different.diff() > 1e-6].min() > 1e-3
    for topk in (1, 10, 60):
        _, ids = route(run, logits, topk, scoring="sigmoid", bias=bias)
        for row, got in zip(exact.tolist(), ids.tolist(), strict=True):
            assert got == sorted(range(60), key=lambda e: (-round(row[e], 6), e))[:topk]


def test_an_expert_of_a_group_that_is_out_is_never_chosen(run):
    """Not with negative choices, where masking by 0 would prefer it, nor beside experts at -Inf."""
    row, bias = [0.0] * 8, [-9.0, -9.0, -9.0, -9.0, -8.0, -8.0, -9.5, -8.5]
    groups = {"num_groups": 4, "topk_groups": 1, "bias": bias}
    assert chosen(run, row, 2, **NOAUX_TC, **groups) == [4, 5]
    groups["topk_groups"] = 2
    assert chosen(run, row, 4, **NOAUX_TC, **groups) == [4, 5, 0, 1]
    beside = [1.0, -INF, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0]
    assert chosen(run, beside, 2, num_groups=4, topk_groups=1) == [0, 1]


def test_top2sum_adds_the_two_best_of_a_group(run):
    row = [2.0, -9.0, 0.9, 0.9, 1.0, 0.7, -9.0, -9.0]
    groups = {"num_groups": 4, "topk_groups": 1, "scoring": "sigmoid"}
    assert chosen(run, row, 2, **groups) == [0, 1]
    assert chosen(run, row, 2, group_score="top2sum", **groups) == [2, 3]
    assert chosen(run, row, 2, group_score="top2sum", bias=[0.6] + [0.0] * 7, **groups) == [0, 1]
    one_each = {"num_groups": 8, "topk_groups": 2, "scoring": "sigmoid", "group_score": "top2sum"}
    assert chosen(run, row, 2, **one_each) == [0, 4]


def test_the_bias_chooses_and_does_not_weigh(run):
    row, bias = [0.0, 1.0, 2.0, 3.0], [5.0, 0.0, 4.0, 0.0]
    for scoring in SCORINGS:
        weights, ids = route(run, [row], 2, scoring=scoring, bias=bias)
        alone, all_ids = route(run, [row], 4, scoring=scoring)
        assert ids.tolist() == [[0, 2]]
        assert all_ids.tolist() == [[3, 2, 1, 0]]
        assert testing.same_bits(weights[0], alone[0, [3, 1]])


@pytest.mark.parametrize("E", [1, 2, 31, 33, 257, 1024])
def test_takes_any_number_of_experts_and_any_topk(run, E):
    rows = random_logits(2, E, seed=E)
    for topk in sorted({1, min(E, 3), E // 2 or 1, E if E < 300 or not run.is_slow else 40}):
        weights, ids = route(run, rows, topk, scoring="sigmoid")
        assert torch.equal(ids.long(), rows.sort(dim=-1, descending=True, stable=True).indices[:, :topk])
        torch.testing.assert_close(weights, rows.gather(1, ids.long()).sigmoid(), rtol=1e-6, atol=0)


# --- scores ----------------------------------------------------------------------------------------------


def exact_scores(x: Tensor, scoring: str) -> tuple[Tensor, Tensor]:
    """(score in float64, the error that the docstring allows)."""
    x = x.double()
    if scoring == "softmax":
        units = 12 + x.amax(-1, keepdim=True) - x
        score = x.softmax(-1)
        return score, 2.0**-24 * units * score + 2.0**-149
    if scoring == "sigmoid":
        score = x.sigmoid()
        return score, 2.0**-24 * 12 * score + 2.0**-149
    softplus = x.clamp(min=0) + (-x.abs()).exp().log1p()
    lost = torch.where(softplus < 2.0**-126, 2.0**-149, 0.0)
    score = softplus.sqrt()
    return score, 2.0**-24 * 12 * score + score - (softplus - lost).clamp(min=0).sqrt()


@pytest.mark.parametrize("scoring", SCORINGS)
def test_scores_keep_the_bound_of_the_docstring_and_have_the_bits_of_the_definition(run, scoring):
    """topk = E shows every score."""
    sweep = torch.linspace(-108, 108, 40 * 64).view(40, 64)
    tiny = torch.exp2(torch.linspace(-149, 6, 128)).view(2, 64)
    x = torch.cat([sweep, tiny, -tiny, random_logits(8, 64, size=30.0), random_logits(8, 64)])
    inputs = {"logits": x.to(run.device), "topk": 64, "scoring": scoring}
    weights, ids = run(inputs)
    for got, expected in zip((weights, ids), moela.reference.moe_topk(x, 64, scoring=scoring), strict=True):
        assert testing.same_bits(got.cpu(), expected)
    scores = torch.empty_like(x).scatter_(1, ids.cpu().long(), weights.cpu())
    testing.assert_within(scores, *exact_scores(x, scoring), scoring)


def test_weights_sum_to_scaling_when_renormalized(run):
    for scoring in SCORINGS:
        weights, _ = route(run, random_logits(9, 40), 7, scoring=scoring, renormalize=True, scaling=2.5)
        torch.testing.assert_close(
            weights.double().sum(-1), torch.full((9,), 2.5).double(), rtol=1e-6, atol=0
        )


def test_the_sum_of_weights_may_underflow(run):
    """Sigmoids of 1e-40 have the weights s / (sum + 1e-20), as in DeepSeek-V3's code; no NaN."""
    weights, ids = route(run, [[-92.0, -91.0, -93.0]], 2, scoring="sigmoid", renormalize=True)
    assert ids.tolist() == [[1, 0]]
    torch.testing.assert_close(
        weights[0].double() * 1e-20, torch.tensor([-91.0, -92.0]).double().exp(), rtol=1e-3, atol=0
    )


# --- NaN -------------------------------------------------------------------------------------------------


def test_a_row_with_nan_has_nan_weights_and_the_first_experts(run):
    bad_for_all = [[1.0, NAN, 2.0, 3.0], [-NAN, 0.0, 0.0, 0.0], [NAN] * 4]
    bad_for_softmax = [[1.0, INF, 2.0, 3.0], [-INF] * 4]
    good = [4.0, 1.0, 3.0, 2.0]
    for scoring in SCORINGS:
        rows = [good, *bad_for_all, good, *bad_for_softmax]
        weights, ids = route(run, rows, 3, scoring=scoring, num_groups=2, topk_groups=2)
        is_nan = weights.isnan()
        expected = [False, True, True, True, False] + [scoring == "softmax"] * 2
        assert is_nan.all(-1).tolist() == expected
        assert is_nan.any(-1).tolist() == expected
        assert ids[[i for i, bad in enumerate(expected) if bad]].tolist() == [[0, 1, 2]] * sum(expected)
        assert ids[0].tolist() == ids[4].tolist() == [0, 2, 3]


def test_infinite_logits_are_ranked_where_their_score_is_a_number(run):
    row = [INF, 1.0, -INF, INF, 2.0]
    weights, ids = route(run, [row], 5, scoring="sigmoid")
    assert ids.tolist() == [[0, 3, 4, 1, 2]]
    assert weights[0, [0, 1, 4]].tolist() == [1.0, 1.0, 0.0]


def test_a_bias_or_a_sum_of_groups_that_is_nan_is_seen(run):
    weights, ids = route(run, [[1.0, 2.0, 3.0, 4.0]], 2, scoring="sigmoid", bias=[0.0, NAN, 0.0, 0.0])
    assert weights.isnan().all()
    assert ids.tolist() == [[0, 1]]
    biased = {"bias": [INF, -INF, 0.0, 0.0], "num_groups": 2, "topk_groups": 1, "group_score": "top2sum"}
    weights, ids = route(run, [[1.0, 2.0, 3.0, 4.0]], 2, scoring="sigmoid", **biased)
    assert weights.isnan().all()
    assert ids.tolist() == [[0, 1]]


# --- derivative ------------------------------------------------------------------------------------------


def differentiable(x: Tensor, ids: Tensor, scoring: str, renormalize: bool, scaling: float) -> Tensor:
    scores = {
        "softmax": lambda: x.softmax(-1),
        "sigmoid": x.sigmoid,
        "sqrtsoftplus": lambda: (1 + x.exp()).log().sqrt(),
    }[scoring]()
    weights = scores.gather(1, ids.long())
    return (weights / weights.sum(-1, keepdim=True) if renormalize else weights) * scaling


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("scoring", SCORINGS)
def test_the_derivative_is_that_of_the_formula(run, scoring, renormalize):
    x = random_logits(6, 20, seed=8).to(run.device).requires_grad_()
    bias = random_logits(1, 20, seed=9, size=0.1)[0].to(run.device)
    inputs = {"logits": x, "topk": 4, "bias": bias, "scoring": scoring, "renormalize": renormalize}
    weights, ids = run(inputs | {"scaling": 1.5})
    grad = random_logits(6, 4, seed=10).to(run.device)
    weights.backward(grad)
    exact = x.detach().double().requires_grad_()
    differentiable(exact, ids, scoring, renormalize, 1.5).backward(grad.double())
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=1e-4, atol=1e-6)


def test_the_derivative_is_finite_where_scores_vanish(run):
    for scoring in SCORINGS:
        x = torch.tensor([[0.0, -400.0, -90.0, 95.0]], device=run.device, requires_grad=True)
        weights, _ = run({"logits": x, "topk": 4, "scoring": scoring})
        weights.sum().backward()
        assert x.grad.isfinite().all(), scoring


def test_compiles_with_its_derivative_as_one_graph(op):
    def loss(x: Tensor) -> Tensor:
        weights, ids = moela.moe_topk(x, 3, renormalize=True)
        return (weights * (ids + 1)).sum()

    x = random_logits(5, 12).bfloat16().requires_grad_()
    loss(x).backward()
    eager, x.grad = x.grad, None
    torch._dynamo.reset()
    torch.compile(loss, fullgraph=True, backend="aot_eager")(x).backward()
    assert testing.same_bits(x.grad, eager)
    assert math.isfinite(eager.float().sum().item())
