"""MoE: whole blocks of transformers, and one made without it."""

import moela
import pytest
import stock
import torch
from moela import testing
from moela.nn import Experts, Fp8Linear, GatedMlp, MoE, TopkRouter
from torch import Tensor, nn

NOAUX = {
    "scoring": "sigmoid",
    "num_groups": 4,
    "topk_groups": 2,
    "group_score": "top2sum",
    "renormalize": True,
}
TAKEN = [
    ("deepseek_v2", "DeepseekV2Moe"),
    ("deepseek_v3", "DeepseekV3MoE"),
    ("deepseek_v32", "DeepseekV32MoE"),
    ("deepseek_v4", "DeepseekV4SparseMoeBlock"),
    ("glm4_moe", "Glm4MoeMoE"),
    ("kimi_linear", "KimiLinearMoE"),
    ("qwen2_moe", "Qwen2MoeSparseMoeBlock"),  # a gate on its shared expert
    ("qwen3_moe", "Qwen3MoeSparseMoeBlock"),
    ("qwen3_next", "Qwen3NextSparseMoeBlock"),
    ("mixtral", "MixtralSparseMoeBlock"),
    ("olmoe", "OlmoeSparseMoeBlock"),
    ("jamba", "JambaSparseMoeBlock"),  # its router is called that
    ("minimax_m2", "MiniMaxM2SparseMoeBlock"),  # the block has the bias of the choice
    ("step3p7", "Step3p7SparseMoeBlock"),
]
REFUSED = [
    ("axk1", "AXK1MoE", r"expected gate, experts and shared experts, got \['post_mlp_layernorm'\] too"),
    ("beam", "BeamMoE", "expected the sum of experts and shared experts, got something else"),  # scales it
    ("laguna", "LagunaSparseMoeBlock", "expected the sum"),
    ("cohere2_moe", "Cohere2MoeSparseMoeBlock", "expected the sum"),  # the mean
    ("gpt_oss", "GptOssMLP", "expected the sum"),  # returns two things
    (
        "lfm2_moe",
        "Lfm2MoeSparseMoeBlock",
        "router: expected one that is recognised, got .* routes in no way",
    ),
    ("llama4", "Llama4TextMoe", "router: expected one that is recognised, got Llama4Router"),
]


def block_of(model: str, name: str) -> nn.Module:
    options = {"laguna": {"moe_routed_scaling_factor": 2.5}, "beam": {"routed_scaling_factor": 2.5}}
    options |= {"cohere2_moe": {"shared_expert_combination_strategy": "average"}}
    if model == "step3p7":
        options["step3p7"] = {"moe_router_scaling_factor": 1.0}
    return stock.block_of(model, name, **options.get(model, {}))


def assert_close(got: Tensor, expected: Tensor) -> None:
    # Two computations in float32 with sums of up to 64 terms, some five experts: 2^9 units of the largest.
    error = torch.full_like(expected, 2.0**-15, dtype=torch.float64) * expected.abs().max().item()
    testing.assert_within(got.detach(), expected.detach().double(), error)


@pytest.mark.parametrize(("model", "name"), TAKEN, ids=[model for model, _ in TAKEN])
def test_computes_what_a_block_of_transformers_does(model, name):
    block = block_of(model, name)
    mine = MoE.from_module(block)
    x = torch.randn(2, 5, stock.HIDDEN, generator=torch.Generator().manual_seed(1))
    assert_close(mine(x), block(x))
    with torch.no_grad():
        assert_close(mine(x), block(x))
    theirs = dict(block.named_parameters())
    assert all(any(p is q for q in theirs.values()) for p in mine.parameters())


@pytest.mark.parametrize(("model", "name"), [t for t in TAKEN if t[0] != "minimax_m2"], ids=lambda v: v)
def test_has_the_state_dict_of_the_block(model, name):
    block = block_of(model, name)
    mine = MoE.from_module(block)
    assert mine.state_dict().keys() == block.state_dict().keys()
    mine.load_state_dict(block.state_dict())
    block.load_state_dict(mine.state_dict())


@pytest.mark.parametrize(("model", "name", "message"), REFUSED, ids=[model for model, *_ in REFUSED])
def test_another_block_is_refused_with_a_reason(model, name, message):
    with pytest.raises(ValueError, match=message):
        MoE.from_module(block_of(model, name))


def test_a_block_that_adds_noise_in_training_is_refused():
    block = stock.block_of("mixtral", "MixtralSparseMoeBlock", router_jitter_noise=0.1)
    with pytest.raises(
        ValueError, match=r"expected one that adds no noise in training, got \['jitter_noise'\]"
    ):
        MoE.from_module(block)


def test_names_what_is_missing():
    with pytest.raises(
        ValueError, match=r"moela.nn.MoE: block: expected a gate or a router, got a Linear without"
    ):
        MoE.from_module(nn.Linear(2, 3))


def plain(**options) -> MoE:
    H, I, E = stock.HIDDEN, 32, stock.E
    return MoE(
        TopkRouter(H, E, stock.TOPK, has_correction_bias=True, scaling=2.5, **NOAUX),
        Experts(H, I, E, **options),
        GatedMlp(H, I, **options),
    )


def test_one_made_without_transformers_takes_its_state_dict():
    block = stock.block_of("deepseek_v3", "DeepseekV3MoE")
    mine = plain()
    mine.load_state_dict(block.state_dict())
    x = torch.randn(2, 5, stock.HIDDEN)
    assert_close(mine(x), block(x))
    block.load_state_dict(mine.state_dict())


def test_is_trained_like_the_block():
    block = stock.block_of("deepseek_v3", "DeepseekV3MoE")
    mine = plain()
    mine.load_state_dict(block.state_dict())
    x = torch.randn(2, 5, stock.HIDDEN)
    for module in (mine, block):
        module(x).square().sum().backward()
    for name, p in block.named_parameters():
        assert_close(mine.get_parameter(name).grad, p.grad)


def test_fp8_runs_and_compiles_as_one_graph():
    layer = plain(dtype=torch.float8_e4m3fn).requires_grad_(False)
    for n, p in layer.named_parameters():
        if p.dtype == torch.float8_e4m3fn:
            p.copy_(torch.randn(p.shape) * 8)
        elif n.endswith("scale_inv"):
            p.fill_(0.01)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for shape in ((2, 3), (1, 1), (3, 4)):
        x = torch.randn(*shape, stock.HIDDEN, dtype=torch.bfloat16)
        out = layer(x)
        assert out.shape == x.shape
        assert out.abs().max() > 0
        assert testing.same_bits(compiled(x), out)


def test_an_fp8_block_of_transformers_is_taken():
    fp8 = pytest.importorskip("transformers.integrations.finegrained_fp8")
    block = stock.block_of("deepseek_v3", "DeepseekV3MoE", moe_intermediate_size=128)
    x = torch.randn(2, 5, stock.HIDDEN)
    expected = block(x).detach()
    experts = fp8.FP8Experts(block.config, block_size=(128, 128))
    for name in ("gate_up_proj", "down_proj"):
        q, sf = zip(*map(moela.per_block_quant_fp8, getattr(block.experts, name).detach()), strict=True)
        getattr(experts, name).data, getattr(experts, f"{name}_scale_inv").data = (
            torch.stack(q),
            torch.stack(sf),
        )
    block.experts = experts
    for name in ("gate_proj", "up_proj", "down_proj"):
        old = getattr(block.shared_experts, name)
        linear = fp8.FP8Linear(old.in_features, old.out_features, block_size=(128, 128))
        linear.weight.data, linear.weight_scale_inv.data = moela.per_block_quant_fp8(old.weight.detach())
        setattr(block.shared_experts, name, linear)
    mine = MoE.from_module(block)
    assert isinstance(mine.shared_experts.up_proj, Fp8Linear)
    assert mine.state_dict().keys() == block.state_dict().keys()
    with torch.no_grad():
        out = mine(x)
    # Weights rounded to 4 bits, three products one after the other: 3 * 2^-4, were all errors to conspire.
    assert (out - expected).norm() <= 3 * 2.0**-4 * expected.norm()
    assert not torch.equal(out, expected)


@pytest.mark.parametrize("shape", [(0,), (2, 0), ()])
def test_leading_dimensions_are_rows(shape):
    layer = plain()
    x = torch.randn(*shape, stock.HIDDEN)
    assert layer(x).shape == x.shape


def test_shared_experts_that_are_another_layer_stay_as_they_are():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_proj, self.up_proj, self.down_proj = (nn.Linear(8, 8) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.down_proj(self.gate_proj(x).tanh() * self.up_proj(x))

    odd = Odd()
    assert GatedMlp.from_module(odd) is odd
    assert isinstance(
        GatedMlp.from_module(stock.block_of("deepseek_v3", "DeepseekV3MoE").shared_experts), GatedMlp
    )
