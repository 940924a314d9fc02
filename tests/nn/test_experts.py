"""Experts: the names and the shapes of transformers, with and without it."""

import pytest
import stock
import torch
from expert_loop import E4M3, make_inputs
from moela import testing
from moela.nn import Experts, SwiGlu, run_experts
from torch import Tensor, nn

H, I, E = 64, 32, 16
BF16, FP32 = torch.bfloat16, torch.float32


def routed(T: int, hidden: int, num_experts: int, dtype: torch.dtype = FP32) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(T, hidden, generator=g).to(dtype)
    ids = torch.rand(T, num_experts, generator=g).argsort(-1)[:, :4]
    return x, ids, torch.rand(T, 4, generator=g)


@pytest.mark.parametrize(
    ("options", "shapes"),
    [
        ({}, {"gate_up_proj": (E, 2 * I, H), "down_proj": (E, H, I)}),
        (
            {"has_bias": True, "is_transposed": True, "dtype": BF16},
            {
                "gate_up_proj": (E, H, 2 * I),
                "gate_up_proj_bias": (E, 2 * I),
                "down_proj": (E, I, H),
                "down_proj_bias": (E, H),
            },
        ),
        ({"gate": torch.relu, "is_gated": False}, {"up_proj": (E, I, H), "down_proj": (E, H, I)}),
        (
            {"dtype": E4M3},
            {
                "gate_up_proj": (E, 2 * I, H),
                "gate_up_proj_scale_inv": (E, 2, 1),
                "down_proj": (E, H, I),
                "down_proj_scale_inv": (E, 1, 1),
            },
        ),
    ],
    ids=["plain", "gpt-oss", "ungated", "fp8"],
)
def test_has_the_names_and_shapes_of_transformers(options, shapes):
    layer = Experts(H, I, E, **options)
    assert {n: tuple(t.shape) for n, t in layer.state_dict().items()} == shapes
    x, ids, weights = routed(5, H, E)
    with torch.no_grad():
        out = layer(x, ids, weights)
    assert out.shape == x.shape
    assert out.isfinite().all()
    assert "down_proj=" in repr(layer)


def test_scale_blocks_of_gate_and_up_are_apart():
    layer = Experts(200, 192, 2, dtype=E4M3, sf_dtype=BF16)
    assert layer.gate_up_proj_scale_inv.shape == (2, 4, 2)
    assert layer.down_proj_scale_inv.shape == (2, 2, 2)
    assert layer.down_proj_scale_inv.dtype == BF16


@pytest.mark.parametrize("dims", [{"I": 24}, {"I": 192, "w_dtype": E4M3}, {"I": 24, "bias": True}])
def test_is_run_experts_with_its_weights(dims):
    args = make_inputs(**{"T": 5, "H": 40} | dims)
    gate = SwiGlu(7.0)
    layer = Experts(
        40, dims["I"], 4, gate=gate, has_bias="bias" in dims, dtype=dims.get("w_dtype", BF16)
    ).requires_grad_(False)
    names = {"w13": "gate_up_proj", "sf_w13": "gate_up_proj_scale_inv", "b13": "gate_up_proj_bias"}
    names |= {"w2": "down_proj", "sf_w2": "down_proj_scale_inv", "b2": "down_proj_bias"}
    layer.load_state_dict({names[n]: args[n] for n in names if n in args})
    expected = run_experts(**args | {"gate": gate})
    assert testing.same_bits(layer(args["x"], args["topk_ids"], args["topk_weights"]), expected)


def test_device_and_dtype_are_those_asked_for():
    layer = Experts(H, I, E, has_bias=True, device="meta", dtype=torch.float16)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.float16)}


STOCK = [
    ("deepseek_v3", "DeepseekV3MoE", SwiGlu()),
    ("mixtral", "MixtralSparseMoeBlock", SwiGlu()),
    ("qwen3_moe", "Qwen3MoeSparseMoeBlock", SwiGlu()),
    ("aria", "AriaTextMoELayer", SwiGlu()),  # transposed
    ("deepseek_v4", "DeepseekV4SparseMoeBlock", SwiGlu(10.0)),
    ("minimax_m3_vl", "MiniMaxM3VLSparseMoeBlock", SwiGlu(7.0, 1.702)),
    ("gpt_oss", "GptOssMLP", None),  # transposed, interleaved, biases
    ("nemotron_h", "NemotronHMoE", None),  # not gated
    ("muse_spark", "MuseSparkMoE", SwiGlu()),  # a norm after the second product
    ("step3p7", "Step3p7SparseMoeBlock", SwiGlu()),
]


@pytest.mark.parametrize(("model", "block", "gate"), STOCK, ids=[model for model, *_ in STOCK])
@pytest.mark.parametrize("is_trained", [False, True])
def test_computes_what_a_module_of_transformers_does(model, block, gate, is_trained):
    theirs = stock.block_of(model, block).experts
    if not hasattr(theirs, "down_proj"):
        stock.skip_if_older("experts are modules in a list")
    mine = Experts.from_module(theirs)
    assert mine.gate == gate or (gate is None and not isinstance(mine.gate, SwiGlu))
    first = theirs.gate_up_proj if hasattr(theirs, "gate_up_proj") else theirs.up_proj
    hidden = first.size(1 if getattr(theirs, "is_transposed", model == "gpt_oss") else 2)
    x, ids, weights = routed(9, hidden, stock.E)
    with torch.set_grad_enabled(is_trained):
        out, expected = mine(x, ids, weights), theirs(x, ids, weights)
    # Two computations in float32 with sums of up to 64 terms, four experts: 2^9 units of the largest.
    error = torch.full_like(expected, 2.0**-15, dtype=torch.float64) * expected.abs().max().item()
    testing.assert_within(out.detach(), expected.detach().double(), error)


@pytest.mark.parametrize("model", ["deepseek_v3", "gpt_oss"])
@pytest.mark.parametrize("is_trained", [False, True])
def test_compiles_as_one_graph_for_every_number_of_rows(model, is_trained):
    block = next(block for name, block, _ in STOCK if name == model)
    layer = Experts.from_module(stock.block_of(model, block).experts).requires_grad_(is_trained)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for T in (5, 1, 3):
        inputs = routed(T, stock.HIDDEN, stock.E)
        assert testing.same_bits(compiled(*inputs).detach(), layer(*inputs).detach())


@pytest.mark.parametrize("model", ["deepseek_v3", "gpt_oss", "nemotron_h", "muse_spark"])
def test_shares_the_parameters_under_the_same_names(model):
    block = next(block for name, block, _ in STOCK if name == model)
    theirs = stock.block_of(model, block).experts
    mine = Experts.from_module(theirs)
    assert dict(mine.named_parameters()).keys() == dict(theirs.named_parameters()).keys()
    assert all(p is theirs.get_parameter(n) for n, p in mine.named_parameters())
    theirs.load_state_dict(mine.state_dict())


def test_fp8_experts_of_transformers_are_taken():
    fp8 = pytest.importorskip("transformers.integrations.finegrained_fp8")
    config = stock.block_of("deepseek_v3", "DeepseekV3MoE").config
    config.moe_intermediate_size = 128
    theirs = fp8.FP8Experts(config, block_size=(128, 128))
    mine = Experts.from_module(theirs)
    assert mine.gate == SwiGlu()
    assert mine.gate_up_proj is theirs.gate_up_proj
    assert mine.down_proj_scale_inv is theirs.down_proj_scale_inv
    args = make_inputs(T=5, H=stock.HIDDEN, I=128, E=stock.E, topk=2, w_dtype=E4M3)
    theirs.gate_up_proj.data, theirs.gate_up_proj_scale_inv.data = args["w13"], args["sf_w13"]
    theirs.down_proj.data, theirs.down_proj_scale_inv.data = args["w2"], args["sf_w2"]
    with torch.no_grad():
        out = mine(args["x"], args["topk_ids"], args["topk_weights"])
    assert testing.same_bits(out, run_experts(**args))
    theirs.activation_scheme = "static"
    with pytest.raises(
        ValueError, match=r"moela.nn.Experts: module: expected activation_scheme dynamic, got static"
    ):
        Experts.from_module(theirs)


def test_names_what_it_does_not_know():
    with pytest.raises(
        ValueError, match=r"moela.nn.Experts: module: expected up_proj of 3 dimensions, got a Linear"
    ):
        Experts.from_module(nn.Linear(2, 3))
    odd = Experts(H, I, E)
    odd.router = nn.Linear(2, 3)
    with pytest.raises(ValueError, match=r"expected weights, scales and biases, got \['router.weight'\] too"):
        Experts.from_module(odd)
    with pytest.raises(
        ValueError, match=r"moela.nn.Experts: gate: expected a function because is_gated is False"
    ):
        Experts(H, I, E, is_gated=False)
