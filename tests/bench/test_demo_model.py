"""The model of the demo: a published layout, and weights that are worth computing with."""

from dataclasses import replace

import moela
import pytest
import torch
from moela.bench import checkpoint
from moela.bench.demo_model import SF, DemoModel
from moela.shapes import MODELS, MlaShape, ModelShape
from moela.testing import same_bits

# 80 rows of kv_a, 96 of q_b: no multiples of 128.
MLA = MlaShape(2, 64, 64, 32, 16, 32)
TINY = DemoModel(ModelShape("tiny", 256, 128, 8, 2, 128, 384, 2, 1, MLA, "made up"), 96)


def full():
    return DemoModel(replace(MODELS["deepseek-v3"], num_layers=2, num_dense_layers=1, num_experts=16), 4096)


def test_names_dtypes_and_shapes_are_those_of_the_published_checkpoint():
    specs = {name: str(spec) for name, spec in full().specs.items()}
    for name, (weight, sf) in {
        "model.layers.0.self_attn.q_a_proj": ([1536, 7168], [12, 56]),
        "model.layers.0.self_attn.q_b_proj": ([24576, 1536], [192, 12]),
        "model.layers.0.self_attn.kv_a_proj_with_mqa": ([576, 7168], [5, 56]),
        "model.layers.0.self_attn.kv_b_proj": ([32768, 512], [256, 4]),
        "model.layers.1.self_attn.o_proj": ([7168, 16384], [56, 128]),
        "model.layers.0.mlp.gate_proj": ([18432, 7168], [144, 56]),
        "model.layers.0.mlp.down_proj": ([7168, 18432], [56, 144]),
        "model.layers.1.mlp.shared_experts.up_proj": ([2048, 7168], [16, 56]),
        "model.layers.1.mlp.experts.15.down_proj": ([7168, 2048], [56, 16]),
    }.items():
        assert specs.pop(f"{name}.weight") == f"F8_E4M3 {weight}"
        assert specs.pop(f"{name}.weight_scale_inv") == f"F32 {sf}"
    for name, spec in {
        "model.embed_tokens.weight": "BF16 [4096, 7168]",
        "model.layers.0.self_attn.kv_a_layernorm.weight": "BF16 [512]",
        "model.layers.1.mlp.gate.weight": "BF16 [16, 7168]",
        "model.layers.1.mlp.gate.e_score_correction_bias": "F32 [16]",
        "model.norm.weight": "BF16 [7168]",
        "lm_head.weight": "BF16 [4096, 7168]",
    }.items():
        assert specs.pop(name) == spec
    assert {spec.partition(" ")[0] for name, spec in specs.items() if name.endswith("proj.weight")} == {
        "F8_E4M3"
    }


def test_the_default_model_fits_8_gb_in_float32():
    model = full()
    assert checkpoint.total_bytes(model.shards) < 1.7e9
    assert 4 * model.num_weights < 6.5e9


def test_a_weight_is_the_same_in_every_process_and_no_two_are_alike():
    names = [name for name, spec in TINY.specs.items() if name.endswith("_proj.weight")]
    rows = [bytes(TINY.tensor(name).view(torch.uint8)[0, :32].tolist()) for name in names]
    assert len(set(rows)) == len(names)
    first = "model.layers.0.self_attn.q_a_proj.weight"
    assert TINY.tensor(first)[0, :4].tolist() == [-144.0, 112.0, -112.0, -88.0]
    assert same_bits(TINY.tensor(first), DemoModel(TINY.shape, 96).tensor(first))


@pytest.mark.parametrize("name", ["mlp.gate_proj", "mlp.down_proj", "self_attn.kv_a_proj_with_mqa"])
def test_dequantized_weights_keep_the_size_of_what_goes_through_them(name):
    w = TINY.weight(f"model.layers.0.{name}.weight", torch.float32)
    # A block's scale factor is within 2^0.75 of the middle, as no entry of the normal table is beyond 3.
    assert 2**-0.75 < w.std().item() * w.size(1) ** 0.5 < 2**0.75
    assert len(TINY.tensor(f"model.layers.0.{name}.weight{SF}").unique()) > 1


def test_stock_transformers_gets_every_weight_of_the_checkpoint():
    pytest.importorskip("transformers")
    told = []
    net = TINY.stock(torch.float32, "eager", lambda: told.append(0))
    assert len(told) == len(TINY.specs)
    state = net.state_dict()
    assert all(t.isfinite().all() for t in state.values())
    w13 = state["model.layers.1.mlp.experts.gate_up_proj"]  # [E, 2 I, H]
    for expert in range(8):
        prefix = f"model.layers.1.mlp.experts.{expert}"
        halves = [TINY.weight(f"{prefix}.{x}_proj.weight", torch.float32) for x in ("gate", "up")]
        assert torch.equal(w13[expert], torch.cat(halves))
    name = "model.layers.1.self_attn.kv_a_proj_with_mqa.weight"
    exact = moela.per_block_dequant_fp8(TINY.tensor(name), TINY.tensor(name + SF), torch.float32)
    assert torch.equal(state[name], exact)
    num_experts = 3 * 8 - 2  # stacked: two tensors
    assert len(state) == sum(not name.endswith(SF) for name in TINY.specs) - num_experts
