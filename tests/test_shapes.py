"""shapes.py: the numbers of real models, held to what their own configurations imply."""

import pytest
from moela.shapes import MODELS, GroupShape, IndexerShape, LinearShape

# (N, K) of an expert's fused gate and up projections, and of its down projection, as collected independently.
EXPERTS = (
    ("deepseek-v2-lite", (2816, 2048), (2048, 1408)),
    ("deepseek-v2", (3072, 5120), (5120, 1536)),
    ("deepseek-v3", (4096, 7168), (7168, 2048)),
    ("deepseek-v3.2", (4096, 7168), (7168, 2048)),
    ("kimi-k2", (4096, 7168), (7168, 2048)),
    ("moonlight-16b-a3b", (2816, 2048), (2048, 1408)),
    ("mistral-large-3", (8192, 7168), (7168, 4096)),
    ("glm-4.5", (3072, 5120), (5120, 1536)),
    ("glm-4.5-air", (2816, 4096), (4096, 1408)),
    ("glm-4.7-flash", (3072, 2048), (2048, 1536)),
    ("glm-5", (4096, 6144), (6144, 2048)),
    ("qwen3-30b-a3b", (1536, 2048), (2048, 768)),
    ("qwen3-235b-a22b", (3072, 4096), (4096, 1536)),
    ("qwen3-coder-480b-a35b", (5120, 6144), (6144, 2560)),
    ("minimax-m2", (3072, 3072), (3072, 1536)),
    ("mixtral-8x7b", (28672, 4096), (4096, 14336)),
    ("mixtral-8x22b", (32768, 6144), (6144, 16384)),
    ("gpt-oss-20b", (5760, 2880), (2880, 2880)),
    ("gpt-oss-120b", (5760, 2880), (2880, 2880)),
)


@pytest.mark.parametrize(("name", "gate_up", "down"), EXPERTS, ids=[row[0] for row in EXPERTS])
def test_experts_have_the_shapes_of_the_checkpoint(name, gate_up, down):
    layers = MODELS[name].linear_layers()
    assert layers["expert_gate_up"] == LinearShape(*gate_up)
    assert layers["expert_down"] == LinearShape(*down)


def test_every_model_is_checked():
    assert set(MODELS) == {row[0] for row in EXPERTS}


def test_deepseek_v3_attention_has_the_shapes_of_the_checkpoint():
    layers = MODELS["deepseek-v3"].linear_layers()
    assert {name: (layers[name].N, layers[name].K) for name in ("q_a", "q_b", "kv_a", "kv_b", "o_proj")} == {
        "q_a": (1536, 7168),
        "q_b": (24576, 1536),
        "kv_a": (576, 7168),
        "kv_b": (32768, 512),
        "o_proj": (7168, 16384),
    }


def test_a_model_without_query_compression_has_one_query_projection():
    layers = MODELS["deepseek-v2-lite"].linear_layers()
    assert layers["q_proj"] == LinearShape(N=3072, K=2048)
    assert "q_a" not in layers


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda m: m.name)
def test_every_model_names_its_source_and_is_consistent(model):
    assert model.source
    assert 0 < model.topk <= model.num_experts
    assert 0 <= model.num_dense_layers < model.num_layers
    assert all(layer.N > 0 and layer.K > 0 for layer in model.linear_layers().values())


def test_the_indexers_are_those_of_the_models_that_have_one():
    found = {name: model.indexer for name, model in MODELS.items() if model.indexer}
    assert found == {"deepseek-v3.2": IndexerShape(64, 128, 2048), "glm-5": IndexerShape(32, 128, 2048)}


def test_the_limits_on_groups_are_those_of_the_models_that_have_one():
    found = {name: model.groups for name, model in MODELS.items() if model.groups}
    v3 = GroupShape(8, 4, "top2sum")
    assert found == {"deepseek-v2": GroupShape(8, 3, "max"), "deepseek-v3": v3, "deepseek-v3.2": v3}
