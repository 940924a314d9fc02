"""run_router and TopkRouter."""

import moela
import pytest
import torch
from moela import testing
from moela.nn import RouterSettings, TopkRouter, run_router

BF16, FP32 = torch.bfloat16, torch.float32
NOAUX = {
    "scoring": "sigmoid",
    "num_groups": 4,
    "topk_groups": 2,
    "group_score": "top2sum",
    "renormalize": True,
}


def make(T: int = 7, E: int = 16, H: int = 32, dtype: torch.dtype = FP32) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(T, H, generator=g).to(dtype), torch.randn(E, H, generator=g).to(dtype)
    return x, weight, torch.randn(E, generator=g).to(dtype), torch.rand(E, generator=g)


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("logits_dtype", [FP32, None])
def test_is_a_product_and_moe_topk(dtype, logits_dtype):
    x, weight, bias, correction = make(dtype=dtype)
    settings = RouterSettings(4, **NOAUX, scaling=2.5, logits_dtype=logits_dtype)
    logits, weights, ids = run_router(x, weight, settings, bias=bias, correction_bias=correction)
    to = logits_dtype or dtype
    assert testing.same_bits(logits, torch.nn.functional.linear(x.to(to), weight.to(to), bias.to(to)))
    expected = moela.moe_topk(logits, 4, bias=correction, scaling=2.5, **NOAUX)
    assert testing.same_bits(weights, expected[0])
    assert ids.dtype == torch.int64  # as torch.topk has them
    assert torch.equal(ids, expected[1].long())


def test_best_come_first():
    x, weight, *_ = make()
    _, weights, _ = run_router(x, weight, RouterSettings(4))
    assert (weights.diff(dim=-1) <= 0).all()


@pytest.mark.parametrize(("weights_dtype", "expected"), [(FP32, FP32), (None, BF16)])
def test_weights_have_the_dtype_of_the_settings(weights_dtype, expected):
    x, weight, *_ = make(dtype=BF16)
    settings = RouterSettings(4, weights_dtype=weights_dtype)
    assert run_router(x, weight, settings)[1].dtype == expected


def test_float32_logits_stay_so_under_autocast():
    x, weight, *_ = make(dtype=BF16)
    plain = run_router(x, weight, RouterSettings(4))
    with torch.autocast("cpu", torch.bfloat16):
        cast = run_router(x, weight, RouterSettings(4))
    assert testing.same_bits(cast[0], plain[0])


def test_a_weight_in_float32_meets_x_in_float32():
    x, weight, *_ = make()
    settings = RouterSettings(4, logits_dtype=None)
    logits = run_router(x.to(BF16), weight, settings)[0]
    assert testing.same_bits(logits, torch.nn.functional.linear(x.to(BF16).float(), weight))


@pytest.mark.parametrize("shape", [(2, 3, 32), (0, 32), (1, 0, 32), (32,)])
def test_leading_dimensions_are_rows(shape):
    router = TopkRouter(32, 16, 4)
    logits, weights, ids = router(torch.randn(shape))
    T = torch.Size(shape[:-1]).numel()
    assert (logits.shape, weights.shape, ids.shape) == ((T, 16), (T, 4), (T, 4))


def test_has_the_names_of_transformers():
    router = TopkRouter(32, 16, 4, has_bias=True, has_correction_bias=True, dtype=BF16, **NOAUX)
    assert {n: (tuple(t.shape), t.dtype) for n, t in router.state_dict().items()} == {
        "weight": ((16, 32), BF16),
        "bias": ((16,), BF16),
        "e_score_correction_bias": ((16,), FP32),
    }
    assert "scoring='sigmoid'" in repr(router)
    assert TopkRouter(32, 16, 4).state_dict().keys() == {"weight"}


def test_is_differentiable():
    router = TopkRouter(32, 16, 4, has_bias=True, renormalize=True)
    x = torch.randn(5, 32, requires_grad=True)
    _, weights, ids = router(x)
    direction = torch.randn(5, 4)
    (weights * direction).sum().backward()
    expected = torch.nn.functional.linear(x, router.weight, router.bias).gather(1, ids).softmax(-1)
    grads = torch.autograd.grad((expected * direction).sum(), (x, router.weight, router.bias))
    for mine, theirs in zip((x, router.weight, router.bias), grads, strict=True):
        torch.testing.assert_close(mine.grad, theirs, rtol=1e-4, atol=1e-5)


def test_compiles_as_one_graph_for_every_number_of_rows():
    router = TopkRouter(32, 16, 4, has_correction_bias=True, **NOAUX).requires_grad_(False)
    compiled = torch.compile(router, fullgraph=True, backend="aot_eager")
    for T in (3, 1, 5):
        x = torch.randn(T, 32)
        for got, expected in zip(compiled(x), router(x), strict=True):
            assert testing.same_bits(got, expected)


def test_wrong_settings_are_named():
    x, weight, *_ = make()
    with pytest.raises(
        ValueError, match=r"moe_topk: scoring: expected softmax, sigmoid or sqrtsoftplus, got relu"
    ):
        run_router(x, weight, RouterSettings(4, "relu"))
    with pytest.raises(ValueError, match=r"moe_topk: topk: expected 1 .. 16"):
        run_router(x, weight, RouterSettings(17))
