"""Training: gradients through experts and routers, checkpointing, autocast."""

import copy
import itertools

import models
import pytest
import torch

WAYS = ("name", "patch")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", models.MODELS)
def test_gradients_are_those_of_transformers_within_rounding(name, way):
    model = models.build(name)
    inputs = models.prompt(rows=1, length=12)
    exact = models.gradients(copy.deepcopy(model).double(), inputs)
    stock = []
    for implementation in ("eager", "grouped_mm"):
        model.set_experts_implementation(implementation)
        stock.append(models.gradients(model, inputs))
    model.set_experts_implementation("eager")
    models.put_on_moela(model, way)
    mine = models.gradients(model, inputs)
    routed = [n for n in mine if "experts" in n or models.is_router(n)]
    assert any(models.largest(mine[n]) > 0 for n in routed)
    # The worst of all parameters: in one alone, of which cancellation leaves little, either may be lucky.
    assert models.worst(mine, exact) <= 2 * max(models.worst(g, exact) for g in stock) + 2.0**-24


@pytest.mark.parametrize("way", WAYS)
def test_gradient_checkpointing_changes_nothing(way):
    model = models.build("deepseek_v3").train()
    models.put_on_moela(model, way)
    inputs = models.prompt(rows=1, length=9)
    before = models.gradients(model, inputs)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    after = models.gradients(model, inputs)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["deepseek_v3", "gpt_oss", "mixtral"])
def test_a_step_of_training_lowers_the_loss(name, way):
    model = models.build(name).train()
    models.put_on_moela(model, way)
    inputs = models.prompt(rows=1, length=12)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(3):
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(later < earlier for earlier, later in itertools.pairwise(losses))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("is_trained", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("name", ["deepseek_v3", "gpt_oss", "mixtral"])
def test_autocast(name, weights, is_trained, way):
    """Activations and weights of different dtypes meet in the experts, as with grouped_mm."""
    model = models.build(name, dtype=weights)
    inputs = models.prompt(rows=1, length=9)
    results = []
    for put in (
        lambda: model.set_experts_implementation("grouped_mm"),
        lambda: models.put_on_moela(model, way),
    ):
        put()
        with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(is_trained):
            logits = model(**inputs).logits
        if is_trained:
            logits.float().sum().backward()
        results.append(logits.detach().double())
    stock, mine = results
    assert mine.dtype == stock.dtype
    # A dozen products per layer, each rounded to bfloat16, in both; grouped_mm is one of them.
    assert models.rms(mine - stock) < 2.0**-8 * 8 * models.rms(stock)
