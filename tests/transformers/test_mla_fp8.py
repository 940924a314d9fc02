"""Latent attention of FP8 checkpoints: `kv_b_proj` is dequantized once."""

import fp8_checkpoints
import latent
import models
import moela
import pytest
import torch
from moela.integrations.transformers.takeover import record_of
from moela.nn import absorption


@pytest.fixture
def fp8():
    pytest.importorskip("transformers.integrations.finegrained_fp8")
    moela.enable_cpu_fp8()
    yield
    moela.disable_cpu_fp8()


def load(path, **options):
    model = fp8_checkpoints.load(path, **options)
    if not models.has_latents(model):
        pytest.skip("this release caches the keys of every head")
    return model


# 24 rows of a head's keys and 40 of its values: scale blocks of 128 rows end inside heads.
@pytest.mark.parametrize("heads", [{}, {"qk_nope_head_dim": 24, "v_head_dim": 40}])
@pytest.mark.parametrize("linear", [True, False])
def test_decodes_as_the_dequantized_model(tmp_path, fp8, linear, heads):
    checkpoint = fp8_checkpoints.write(tmp_path, **heads)
    model = load(checkpoint.path)
    report = moela.patch(model, linear=linear)
    assert report.count("patched", "mla") == 2
    inputs, counts = models.prompt(rows=2), [1, 1, 2, 1]
    theirs = latent.read(checkpoint.model, inputs, counts)
    latent.assert_same(latent.read(model, inputs, counts), theirs)


def test_a_step_dequantizes_nothing(tmp_path, fp8, monkeypatch):
    model = load(fp8_checkpoints.write(tmp_path).path)
    moela.patch(model)
    calls, dequant = [], absorption.per_block_dequant_fp8
    monkeypatch.setattr(
        absorption, "per_block_dequant_fp8", lambda *args: calls.append(args) or dequant(*args)
    )
    latent.read(model, models.prompt(), [1] * 3)
    assert len(calls) == 2  # layers
    latent.read(model, models.prompt(), [1])
    assert len(calls) == 2


@pytest.mark.parametrize("change", ["assign", "copy"])
def test_other_weights_are_seen(tmp_path, fp8, change):
    first, second = (fp8_checkpoints.write(tmp_path / str(i)) for i in range(2))
    model, other = load(first.path), load(second.path)
    for layer in latent.layers_of(other):  # as another seed would have them
        layer.kv_b_proj.weight_scale_inv.data.mul_(1.5)
    moela.patch(model)
    moela.patch(other)
    latent.read(model, models.prompt(), [1])
    model.load_state_dict(other.state_dict(), assign=change == "assign")
    assert torch.equal(latent.read(model, models.prompt(), [1]), latent.read(other, models.prompt(), [1]))


def test_keeps_no_weight_of_a_model_that_was_unpatched(tmp_path, fp8):
    model = load(fp8_checkpoints.write(tmp_path).path)
    state = list(model.state_dict())
    moela.patch(model)
    latent.read(model, models.prompt(), [1])
    assert list(model.state_dict()) == state
    moela.unpatch(model)
    assert all(record_of(layer) is None for layer in latent.layers_of(model))


def test_bfloat16_activations(tmp_path, fp8):
    """Two roundings of weights to bfloat16 at most: transformers dequantizes to it, too."""
    checkpoint = fp8_checkpoints.write(tmp_path)
    model = load(checkpoint.path, dtype=torch.bfloat16)
    exact, stock = checkpoint.model, load(tmp_path / "plain", dtype=torch.bfloat16)
    moela.patch(model, experts=False, router=False)
    latent.calls.clear()
    inputs = models.prompt(rows=1)
    theirs, mine, right = (latent.read(m, inputs, [1]).double() for m in (stock, model, exact))
    assert models.rms(mine - right) <= 2 * models.rms(theirs - right) + 2.0**-9 * models.rms(right)


def test_compiles_to_one_graph_and_sees_other_weights(tmp_path, fp8):
    """What is remembered of weights is nothing that a graph could ask for: it dequantizes them itself."""
    checkpoint = fp8_checkpoints.write(tmp_path)
    model = load(checkpoint.path, attn_implementation="sdpa")
    moela.patch(model)
    torch._dynamo.reset()
    compiled, inputs = torch.compile(model, fullgraph=True, backend="aot_eager"), models.prompt()
    results = []
    for factor in (1.0, 1.5):
        for layer in latent.layers_of(model):
            with torch.no_grad():
                layer.kv_b_proj.weight_scale_inv.mul_(factor)
        for run in (model, compiled):
            cache = latent.with_cache(models.transformers.DynamicCache(config=model.config))
            with torch.no_grad():
                model(**inputs, **cache)
                mask = torch.cat([inputs["attention_mask"], torch.ones(2, 1, dtype=torch.long)], 1)
                step = {"input_ids": torch.tensor([[5], [6]]), "attention_mask": mask}
                step |= {"position_ids": (mask.cumsum(-1) - 1)[:, -1:]}
                results.append(run(**step, **cache).logits)
    latent.assert_same(results[1], results[0])
    latent.assert_same(results[3], results[2])
    assert not torch.allclose(results[2], results[0])
