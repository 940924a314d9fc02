"""Whole models: the logits and the greedy tokens of transformers' own experts, by name and by patch."""

import models
import moela
import pytest
import torch

STOCK = ("eager", "grouped_mm")
WAYS = ("name", "patch", "both")
# Rows of 1, 7 and 60 tokens: one row of experts, a few, and more than there are experts.
LENGTHS = (1, 7, 60)


def errors_of(name: str, way: str, inputs: dict, **options) -> tuple[float, float, float]:
    """The largest error of moela's logits, that of transformers' own, and the largest logit."""
    model = models.build(name, **options)
    exact = models.exact_logits(model, inputs)
    stock = 0.0
    for implementation in STOCK:
        model.set_experts_implementation(implementation)
        stock = max(stock, models.largest(models.logits_of(model, inputs) - exact))
    model.set_experts_implementation("eager")
    models.put_on_moela(model, way)
    mine = models.largest(models.logits_of(model, inputs) - exact)
    return mine, stock, models.largest(exact)


def allowed(stock: float, size: float) -> float:
    """Both round to float32 along the same path, moela no more often: twice theirs, and one of the result."""
    return 2 * stock + 2.0**-24 * size


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", models.MODELS)
def test_logits_are_those_of_transformers_within_rounding(name, way):
    mine, stock, size = errors_of(name, way, models.prompt())
    assert mine <= allowed(stock, size)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", ["deepseek_v3", "glm4_moe", "qwen3_moe"])
def test_any_length_and_either_attention(name, length, attention):
    inputs = models.prompt(rows=1, length=length)
    mine, stock, size = errors_of(name, "both", inputs, attention=attention)
    assert mine <= allowed(stock, size)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", models.MODELS)
def test_experts_in_half_precision_are_closer_than_twice_transformers(name, dtype):
    """Layer by layer and for given experts: in a whole model a rounded router may choose others."""
    model = models.build(name, dtype=dtype)
    g = torch.Generator().manual_seed(1)
    for _, experts in models.experts_of(model):
        topk, T = model.config.num_experts_per_tok, 40
        x = torch.randn(T, models.HIDDEN, generator=g).to(dtype)
        ids = torch.stack([torch.randperm(experts.num_experts, generator=g)[:topk] for _ in range(T)])
        weights = torch.rand(T, topk, generator=g)
        results = {}
        with torch.no_grad():
            moela.register()
            for implementation in (*STOCK, "moela"):
                model.set_experts_implementation(implementation)
                results[implementation] = experts(x, ids, weights)
            model.set_experts_implementation("eager")
            exact = experts.double()(x.double(), ids, weights.double())
        errors = {k: models.largest(y.double() - exact) for k, y in results.items()}
        assert results["moela"].dtype == dtype
        rounding = torch.finfo(dtype).eps / 2 * models.largest(exact)
        assert errors["moela"] <= 2 * max(errors[s] for s in STOCK) + rounding


@pytest.mark.parametrize("way", ["name", "patch"])
@pytest.mark.parametrize("name", models.MODELS)
def test_generates_the_same_tokens_from_a_left_padded_batch(name, way):
    """Greedy, with the KV cache: a prefill and then one token at a time."""
    model = models.build(name)
    inputs = {k: v for k, v in models.prompt(rows=3).items() if k != "position_ids"}
    options = {
        "max_new_tokens": 5,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    theirs = model.generate(**inputs, **options)
    models.put_on_moela(model, way)
    mine = model.generate(**inputs, **options)
    theirs_logits, logits = torch.stack(theirs.logits), torch.stack(mine.logits)
    first, second = theirs_logits.topk(2).values.unbind(-1)
    distance = models.largest(logits - theirs_logits)
    assert distance < 2**-16 * models.largest(theirs_logits)
    assert (first - second).min() > 2 * distance, "two tokens are too close: choose another seed"
    assert torch.equal(mine.sequences, theirs.sequences)


@pytest.mark.parametrize("name", models.MODELS)
def test_half_precision_generates_the_same_tokens(name):
    """With routers that are sure: the experts of every token are the same, whatever was rounded."""
    model = models.build(name, dtype=torch.bfloat16)
    inputs = models.prompt(rows=1, length=4)
    routing, logits = models.routing_of(model, inputs), models.logits_of(model, inputs)
    exact = models.exact_logits(model, inputs)
    moela.patch(model)
    for theirs, mine in zip(routing, models.routing_of(model, inputs), strict=True):
        assert torch.equal(theirs, mine), "two experts are too close: choose another seed"
    error = models.largest(models.logits_of(model, inputs) - exact)
    rounding = torch.finfo(torch.bfloat16).eps / 2 * models.largest(exact)
    assert error <= 2 * models.largest(logits - exact) + rounding
