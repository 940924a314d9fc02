"""run_fp8_linear and Fp8Linear."""

import pytest
import torch
from moela import testing
from moela.nn import Fp8Linear, run_fp8_linear
from moela.ops._spec import rounding
from moela.reference.fp8_gemm import dequantize_blocks
from moela.reference.fused_experts import as_multiplied
from torch import Tensor, nn

BF16, FP16, FP32, E8M0 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e8m0fnu
E4M3 = torch.float8_e4m3fn


def make(N: int, K: int, sf_dtype: torch.dtype = FP32, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    weight = (torch.randn(N, K, generator=g) * 110).clamp(-448, 448).to(E4M3)
    sf = ((torch.rand(-(-N // 128), -(-K // 128), generator=g) + 0.5) * 2.0**-12).to(sf_dtype)
    return weight, sf, torch.randn(N, generator=g)


def exact(
    x: Tensor, weight: Tensor, sf: Tensor, bias: Tensor | None, quantize: str | None
) -> tuple[Tensor, ...]:
    a, w = as_multiplied(x, quantize), dequantize_blocks(weight, sf, torch.float64)
    b = 0 if bias is None else bias.double()
    y, magnitude = a @ w.T + b, a.abs() @ w.abs().T + (0 if bias is None else b.abs())
    return y, rounding(y, x.dtype) + testing.FLOAT32_SUM * magnitude


@pytest.mark.parametrize("quantize", [None, "fp8", "fp8_ue8m0"])
@pytest.mark.parametrize(
    ("shape", "N", "dtype", "sf_dtype"),
    [
        ((3, 200), 576, BF16, FP32),  # kv_a_proj of DeepSeek-V3 has 576 rows: 5 block rows
        ((2, 3, 130), 192, FP32, BF16),
        ((1, 1, 128), 40, FP16, E8M0),
        ((5,), 7, BF16, FP32),
        ((0, 64), 8, BF16, FP32),
        ((2, 0, 64), 8, FP32, FP32),
    ],
)
def test_is_a_linear_layer_within_the_bound_of_its_product(shape, N, dtype, sf_dtype, quantize):
    weight, sf, bias = make(N, shape[-1], sf_dtype)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    for b in (None, bias):
        y = run_fp8_linear(x, weight, sf, b, quantize_activations=quantize)
        assert y.dtype == dtype
        rows = x.reshape(-1, shape[-1]) if x.numel() else x.new_zeros((0, shape[-1]))
        value, error = exact(rows, weight, sf, b, quantize)
        testing.assert_within(y, value.view(*shape[:-1], N), error.view(*shape[:-1], N))


def test_x_may_have_any_strides():
    weight, sf, _ = make(40, 200)
    x = torch.randn(200, 6, dtype=BF16)
    assert testing.same_bits(run_fp8_linear(x.T, weight, sf), run_fp8_linear(x.T.contiguous(), weight, sf))
    for quantize in (None, "fp8"):
        wide = torch.randn(4, 3, 256, dtype=BF16)[:, :2, :200]
        options = {"quantize_activations": quantize}
        got, expected = (run_fp8_linear(t, weight, sf, **options) for t in (wide, wide.contiguous()))
        assert testing.same_bits(got, expected)


def test_gradients_go_through_the_frozen_weight():
    weight, sf, bias = make(40, 200)
    x = torch.randn(2, 3, 200, generator=torch.Generator().manual_seed(1)).requires_grad_()
    direction = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(2))
    (run_fp8_linear(x, weight, sf, bias) * direction).sum().backward()
    w = dequantize_blocks(weight, sf, torch.float64)
    value, magnitude = direction.double() @ w, direction.double().abs() @ w.abs()
    # The weight is rounded to float32 before it is multiplied.
    error = rounding(value, FP32) + (testing.FLOAT32_SUM + 2.0**-24) * magnitude
    testing.assert_within(x.grad, value, error)


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_a_bias_is_trained_with_and_without_x(dtype):
    weight, sf, bias = make(40, 200)
    x = torch.randn(3, 200, generator=torch.Generator().manual_seed(1)).to(dtype)
    for is_x_trained in (False, True):
        b = bias.clone().requires_grad_()
        y = run_fp8_linear(x.clone().requires_grad_(is_x_trained), weight, sf, b)
        testing.assert_within(y.detach(), *exact(x, weight, sf, bias, None))
        y.float().sum().backward()
        assert torch.equal(b.grad, torch.full((40,), 3.0))


def test_backward_for_the_weight_says_what_to_do():
    weight, sf, _ = make(40, 200)
    y = run_fp8_linear(torch.randn(3, 200), weight.requires_grad_(), sf)
    with pytest.raises(NotImplementedError, match=r"fp8_gemm: b: has no derivative; call b.requires_grad_"):
        y.sum().backward()


def test_compiles_as_one_graph_for_every_number_of_rows():
    weight, sf, bias = make(40, 200)
    layer = Fp8Linear(200, 40, bias=True)
    layer.load_state_dict({"weight": weight, "weight_scale_inv": sf, "bias": bias})
    layer.requires_grad_(False)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for shape in ((2, 3, 200), (1, 1, 200), (4, 5, 200)):
        x = torch.randn(shape)
        assert testing.same_bits(compiled(x), layer(x))


def test_has_the_state_dict_of_transformers():
    theirs = pytest.importorskip("transformers.integrations.finegrained_fp8").FP8Linear(
        200, 576, block_size=(128, 128), has_bias=True
    )
    weight, sf, bias = make(576, 200)
    theirs.load_state_dict({"weight": weight, "weight_scale_inv": sf, "bias": bias})
    mine = Fp8Linear(200, 576, bias=True)
    mine.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(mine.state_dict())
    x = torch.randn(2, 200)
    with torch.no_grad():
        assert testing.same_bits(mine(x), run_fp8_linear(x, weight, sf, bias))
    shared = Fp8Linear.from_module(theirs)
    mine, theirs = dict(shared.named_parameters()), dict(theirs.named_parameters())
    assert mine.keys() == theirs.keys()
    assert all(mine[name] is theirs[name] for name in mine)


@pytest.mark.parametrize(("dtype", "has_bias"), [(FP32, False), (BF16, True)])
def test_begins_as_zero(dtype, has_bias):
    layer = Fp8Linear(130, 20, has_bias, sf_dtype=BF16, dtype=dtype)
    assert layer.weight_scale_inv.shape == (1, 2)
    assert layer(torch.randn(3, 130)).eq(0).all()
    assert "in_features=130, out_features=20" in repr(layer)


def layer_with(**attributes: object) -> nn.Module:
    layer = Fp8Linear(200, 40)
    for name, value in attributes.items():
        setattr(layer, name, value)
    return layer


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: run_fp8_linear(torch.ones(()), *make(4, 8)[:2]),
            "x: expected a tensor of at least 1 dimension",
        ),
        (
            lambda: run_fp8_linear(torch.ones(2, 9), *make(4, 8)[:2]),
            "x: expected K=8 .that of weight., got K=9",
        ),
        (
            lambda: run_fp8_linear(torch.ones(8), torch.ones(8), torch.ones(1)),
            "weight: expected a 2-D tensor",
        ),
        (lambda: Fp8Linear.from_module(nn.Linear(2, 3)), "module: expected a float8_e4m3fn weight"),
        (
            lambda: Fp8Linear.from_module(layer_with(weight_scale_inv=nn.Parameter(torch.ones(())))),
            r"module: expected weight_scale_inv of shape \[1, 2\], got \[\]",
        ),
        (
            lambda: Fp8Linear.from_module(layer_with(activation_scheme="static")),
            "module: expected activation_scheme dynamic, got static",
        ),
    ],
)
def test_names_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=f"moela.nn.(run_fp8_linear|Fp8Linear): {message}"):
        call()
