"""`torch.compile(model, fullgraph=True)`: one graph, with the results of the model as it is."""

import latent
import models
import moela
import pytest
import torch
import transformers

# Of models that share their experts and routers one.
DIFFERENT = [n for n in models.MODELS if n not in ("deepseek_v2_groups", "kimi_k2", "qwen3_moe")]


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch._dynamo.reset()


def compiled_model(model: torch.nn.Module) -> torch.nn.Module:
    return torch.compile(model, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize(
    ("name", "way"), [*((n, "patch") for n in DIFFERENT), ("deepseek_v3", "name"), ("gpt_oss", "name")]
)
def test_compiles_to_one_graph(name, way):
    model = models.build(name)
    models.put_on_moela(model, way)
    inputs = models.prompt()
    eager = models.logits_of(model, inputs)
    with torch.no_grad():
        logits = compiled_model(model)(**inputs, use_cache=False).logits
    # Norms and attention are taken apart by the compiler, what moela does is not.
    distance = models.largest(logits[inputs["attention_mask"].bool()].double() - eager)
    assert distance <= 2.0**-18 * models.largest(eager)


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("deepseek_v3", "patch"),
        ("gpt_oss", "name"),
        pytest.param("deepseek_v3", "name", marks=pytest.mark.thorough),
        pytest.param("gpt_oss", "patch", marks=pytest.mark.thorough),
    ],
)
def test_compiled_gradients(name, way):
    model = models.build(name)
    models.put_on_moela(model, way)
    inputs = models.prompt(rows=1, length=9)
    eager = models.gradients(model, inputs)
    compiled = models.gradients(compiled_model(model), inputs, use_cache=False)
    compiled = {name.removeprefix("_orig_mod."): g for name, g in compiled.items()}
    assert models.worst(compiled, eager) <= 2.0**-18


@pytest.mark.parametrize(
    ("kind", "attention"),
    [
        ("static", "sdpa"),
        ("dynamic", "eager"),
        pytest.param("static", "eager", marks=pytest.mark.thorough),
        pytest.param("dynamic", "sdpa", marks=pytest.mark.thorough),
    ],
)
def test_decodes_in_one_graph(kind, attention):
    results = []
    for is_compiled in (False, True):
        model = models.build("deepseek_v3", attention=attention)
        moela.patch(model)
        static = {"max_cache_len": 32} if kind == "static" else {}
        cache = getattr(transformers, f"{kind.title()}Cache")(config=model.config, **static)
        inputs, given = models.prompt(), latent.with_cache(cache)
        with torch.no_grad():
            model(**inputs, **given)
            mask = torch.cat([inputs["attention_mask"], torch.ones(2, 1, dtype=torch.long)], 1)
            step = {"input_ids": torch.tensor([[5], [6]]), "attention_mask": mask}
            step |= {"position_ids": (mask.cumsum(-1) - 1)[:, -1:]}
            run = compiled_model(model) if is_compiled else model
            results.append(run(**step, **given).logits)
    latent.assert_same(*results)
