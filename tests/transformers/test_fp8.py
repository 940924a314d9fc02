"""FP8 layers of transformers on moela: what `patch` takes over, and what they compute."""

import copy
import types

import models
import moela
import pytest
import torch

fp8 = pytest.importorskip("transformers.integrations.finegrained_fp8")
SF_DTYPES = [torch.float32, torch.bfloat16, torch.float8_e8m0fnu]


@pytest.mark.parametrize("sf_dtype", SF_DTYPES, ids=str)
@pytest.mark.parametrize("name", ["deepseek_v3", "qwen3_moe"])
def test_logits_are_those_of_the_dequantized_model_within_rounding(name, sf_dtype):
    """On a CPU codes are multiplied exactly and activations are not cast: only float32 roundings differ."""
    model, dequantized = models.quantized(models.build(name), sf_dtype)
    inputs = models.prompt()
    exact = models.exact_logits(dequantized, inputs)
    stock = models.largest(models.logits_of(dequantized, inputs) - exact)
    report = moela.patch(model)
    assert report.count("left", "experts") == 0
    mine = models.largest(models.logits_of(model, inputs) - exact)
    assert mine <= 2 * stock + 2.0**-24 * models.largest(exact)


def test_by_name_the_experts_run_and_by_patch_the_linear_layers():
    model, dequantized = models.quantized(models.build("deepseek_v3"))
    inputs = models.prompt()
    moela.register()
    model.set_experts_implementation("moela")
    moela.patch(model, experts=False, router=False)
    exact = models.exact_logits(dequantized, inputs)
    assert models.largest(models.logits_of(model, inputs) - exact) < 2.0**-16 * models.largest(exact)


def test_report_says_which_linear_layers_run_on_moela():
    model, _ = models.quantized(models.build("deepseek_v3"))
    report = moela.patch(model)
    details = {(e.layer, e.detail) for e in report.entries if e.kind == "linear"}
    assert details == {("FP8Linear", "fp8_gemm on cpu"), ("Linear", "not FP8: left to torch")}
    # gate and up begin blocks of their own inside a block of 128 rows: no single op has that
    [experts] = [e for e in report.entries if e.kind == "experts"]
    assert experts.detail == "grouped_fp8_gemm on cpu"


def test_wide_experts_run_as_one_op():
    model, _ = models.quantized(models.build("deepseek_v3", moe_intermediate_size=128))
    [experts] = [e for e in moela.patch(model).entries if e.kind == "experts"]
    assert experts.detail == "fused_experts on cpu"


def test_unpatch_gives_transformers_its_layers_back():
    model, _ = models.quantized(models.build("deepseek_v3"))
    before = {n: dict(vars(m)) for n, m in model.named_modules()}
    moela.patch(model)
    moela.unpatch(model)
    assert {n: dict(vars(m)) for n, m in model.named_modules()} == before


def test_classes_that_run_on_moela_are_reported_as_already():
    """As those of a model loaded under `enable_cpu_fp8`."""
    from moela.integrations.transformers.experts import fp8_experts_forward
    from moela.integrations.transformers.linear import fp8_linear_forward

    model, _ = models.quantized(models.build("deepseek_v3"))
    for module in model.modules():
        for theirs, forward in ((fp8.FP8Linear, fp8_linear_forward), (fp8.FP8Experts, fp8_experts_forward)):
            if isinstance(module, theirs):
                module.__class__ = type(theirs.__name__, (type(module),), {"forward": forward})
    # Another forward of moela, as that of layers with one scale factor.
    other = model.model.layers[0].self_attn.o_proj
    forward = types.FunctionType(fp8_linear_forward.__code__, fp8_linear_forward.__globals__)
    forward.__module__ = fp8_linear_forward.__module__
    other.__class__ = type("Other", (fp8.FP8Linear,), {"forward": forward})
    before = models.logits_of(model, models.prompt())
    report = moela.patch(model)
    assert (report.count("already", "experts"), report.count("patched", "router")) == (1, 1)
    assert report.count("already", "linear") == 16
    moela.unpatch(model)
    assert torch.equal(models.logits_of(model, models.prompt()), before)
    report = moela.patch(model, backend="reference")
    assert report.count("patched", "linear") == 16


def test_gradients_go_through_frozen_fp8_layers():
    """As adapters on top of them need it."""
    model, dequantized = models.quantized(models.build("deepseek_v3"))
    inputs = models.prompt(rows=1, length=9)
    exact = models.gradients(copy.deepcopy(dequantized).double(), inputs)
    stock = models.gradients(dequantized, inputs)
    moela.patch(model)
    mine = models.gradients(model, inputs)
    assert "model.embed_tokens.weight" in mine
    exact, stock = ({name: grads[name] for name in mine} for grads in (exact, stock))
    assert models.worst(mine, exact) <= 2 * models.worst(stock, exact) + 2.0**-24


class TestRefusals:
    @pytest.fixture
    def layers(self):
        model, _ = models.quantized(models.build("deepseek_v3"))
        return model, model.model.layers[1].mlp.experts, model.model.layers[0].self_attn.o_proj

    @pytest.mark.parametrize("block_size", [(64, 128), [128, 64], None])
    def test_other_blocks_are_left_and_refused_by_name(self, layers, block_size):
        model, experts, linear = layers
        experts.block_size = linear.block_size = block_size
        got = block_size and tuple(block_size)
        report = moela.patch(model)
        left = {e.name: e.detail for e in report.entries if e.state == "left"}
        wanted = f"block_size: expected (128, 128), got {got}"
        assert left["model.layers.1.mlp.experts"] == left["model.layers.0.self_attn.o_proj"] == wanted
        from moela.integrations.transformers.experts import fp8_experts_forward
        from moela.integrations.transformers.linear import fp8_linear_forward

        with pytest.raises(ValueError, match=r"^fp8_linear_forward: block_size: expected \(128, 128\), got "):
            fp8_linear_forward(linear, torch.zeros(2, 64))
        ids, weights = torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1)
        with pytest.raises(
            ValueError, match=r"^fp8_experts_forward: block_size: expected \(128, 128\), got "
        ):
            fp8_experts_forward(experts, torch.zeros(2, 64), ids, weights)

    def test_packed_fp4_is_left(self, layers):
        model, experts, _ = layers
        for name in ("gate_up_proj", "down_proj"):
            setattr(experts, name, models.frozen(getattr(experts, name).view(torch.int8)))
        left = {e.name: e.detail for e in moela.patch(model).entries if e.state == "left"}
        assert left["model.layers.1.mlp.experts"] == "weight: expected float8_e4m3fn, got int8"

    def test_a_linear_layer_with_a_forward_of_its_own_class_is_left(self, layers):
        """As FP8GroupedLinear, whose rows are groups of inputs."""
        model, _, linear = layers
        linear.__class__ = type("Grouped", (type(linear),), {"forward": lambda self, x: x})
        left = {e.name: e.detail for e in moela.patch(model).entries if e.state == "left"}
        assert left["model.layers.0.self_attn.o_proj"] == "its forward is not that of FP8Linear"


def test_layers_that_were_not_quantized_work_as_they_are():
    """transformers keeps its FP8 classes with weights of the model's dtype where it could not quantize."""
    model, dequantized = models.quantized(models.build("deepseek_v3"))
    for name, module in model.named_modules():
        if isinstance(module, (fp8.FP8Linear, fp8.FP8Experts)):
            theirs = dequantized.get_submodule(name)
            for weight, _ in theirs.named_parameters(recurse=False):
                setattr(module, weight, getattr(theirs, weight))
    report = moela.patch(model)
    assert report.count("patched", "linear") == 0
    exact = models.exact_logits(dequantized, models.prompt())
    assert models.largest(models.logits_of(model, models.prompt()) - exact) < 2.0**-16 * models.largest(exact)


@pytest.mark.parametrize(
    ("capability", "scheme", "quantization"),
    [
        ((9, 0), "dynamic", "fp8"),
        ((8, 9), "dynamic", "fp8"),
        ((8, 0), "dynamic", None),
        ((9, 0), "static", None),
    ],
)
def test_activations_are_cast_where_tensor_cores_multiply_fp8(capability, scheme, quantization, monkeypatch):
    from moela.integrations.transformers.fp8 import quantize_activations

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    layer = types.SimpleNamespace(activation_scheme=scheme)
    assert quantize_activations(layer, torch.device("cuda")) == quantization
    assert quantize_activations(layer, torch.device("cpu")) is None
