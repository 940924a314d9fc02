"""moela.enable_cpu_fp8: a checkpoint with a fault is refused before it is loaded, by file and tensor."""

import fp8_checkpoints
import moela
import pytest
import torch
from fp8_checkpoints import FP8, load
from moela.integrations.safetensors_header import read_header
from moela.integrations.transformers.fp8_modules import take_over
from transformers import FineGrainedFP8Config
from transformers.integrations.finegrained_fp8 import FP8Linear

LINEAR = "model.layers.0.self_attn.kv_a_proj_with_mqa"
EXPERT = "model.layers.1.mlp.experts.3.up_proj"


@pytest.fixture(autouse=True)
def enabled():
    moela.enable_cpu_fp8()
    yield
    moela.disable_cpu_fp8()


@pytest.fixture
def checkpoint(tmp_path):
    return fp8_checkpoints.write(tmp_path)


def refusal(path):
    with pytest.raises(ValueError, match="expected") as caught:
        load(path)
    return str(caught.value)


def message_after(checkpoint, name, tensor):
    checkpoint.rewrite({name: tensor})
    return refusal(checkpoint.path)


@pytest.mark.parametrize("module", [LINEAR, EXPERT])
def test_missing_scale_factors(checkpoint, module):
    message = message_after(checkpoint, f"{module}.weight_scale_inv", None)
    name = f"{module}.weight_scale_inv"
    assert (
        message
        == f"{checkpoint.file}: {name}: expected the scale factors of {module}.weight, got no such tensor"
    )


@pytest.mark.parametrize("module", [LINEAR, EXPERT])
def test_scale_factors_of_another_shape(checkpoint, module):
    name = f"{module}.weight_scale_inv"
    shape = list(checkpoint.tensors[name].shape)
    message = message_after(checkpoint, name, torch.ones(shape[0] - 1, shape[1]))
    assert message == f"{checkpoint.file}: {name}: expected shape {shape}, got [{shape[0] - 1}, {shape[1]}]"


def test_scale_factors_of_another_dtype(checkpoint):
    name = f"{LINEAR}.weight_scale_inv"
    message = message_after(checkpoint, name, checkpoint.tensors[name].half())
    assert message == f"{checkpoint.file}: {name}: expected F32, BF16, F8_E8M0 or U8, got F16"


def test_scale_factors_of_two_dtypes_in_one_layer(checkpoint):
    name = f"{EXPERT}.weight_scale_inv"
    message = message_after(checkpoint, name, checkpoint.tensors[name].bfloat16())
    parameter = "model.layers.1.mlp.experts.gate_up_proj_scale_inv"
    assert message == f"{checkpoint.file}: {parameter}: expected one dtype, got BF16 and F32"


def test_scale_factors_of_two_names(checkpoint):
    checkpoint.tensors[f"{LINEAR}.weight_scale"] = checkpoint.tensors[f"{LINEAR}.weight_scale_inv"]
    message = message_after(checkpoint, f"{LINEAR}.weight_scale_inv", None)
    wanted = f"expected the scale factors of {LINEAR}.weight, got no such tensor"
    assert message == f"{checkpoint.file}: {LINEAR}.weight_scale_inv: {wanted}"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
@pytest.mark.parametrize("module", [LINEAR, EXPERT])
def test_scale_factors_that_are_no_positive_numbers(checkpoint, module, value):
    name = f"{module}.weight_scale_inv"
    sf = checkpoint.tensors[name].clone()
    sf[-1, -1] = value
    message = message_after(checkpoint, name, sf)
    assert message == f"{checkpoint.file}: {name}: expected positive finite numbers, got {value:g}"


@pytest.mark.parametrize("sf_dtype", [torch.uint8, torch.float8_e8m0fnu])
def test_exponents_that_are_nan(tmp_path, sf_dtype):
    checkpoint = fp8_checkpoints.write(tmp_path, sf_dtype=sf_dtype)
    name = f"{EXPERT}.weight_scale_inv"
    checkpoint.tensors[name].view(torch.uint8)[0, 0] = 255
    message = message_after(checkpoint, name, checkpoint.tensors[name])
    assert message == f"{checkpoint.file}: {name}: expected positive finite numbers, got nan"


def test_a_file_that_is_cut_off(checkpoint):
    size = checkpoint.file.stat().st_size
    with checkpoint.file.open("r+b") as file:
        file.truncate(size - 1)
    assert refusal(checkpoint.path) == f"{checkpoint.file}: expected {size} bytes, got {size - 1}: cut off"


def test_a_missing_expert(checkpoint):
    message = message_after(checkpoint, f"{EXPERT}.weight", None)
    parameter = "model.layers.1.mlp.experts.gate_up_proj"
    assert message == f"{checkpoint.path}: {parameter}: expected 16 tensors, got 15"


@pytest.mark.parametrize("module", [LINEAR, "lm_head"])
def test_a_missing_weight(checkpoint, module):
    """transformers fills in what is not FP8 and says so."""
    name = f"{module}.weight"
    checkpoint.rewrite({name: None, f"{name}_scale_inv": None})
    if module == "lm_head":
        assert load(checkpoint.path) is not None
    else:
        assert refusal(checkpoint.path) == f"{checkpoint.path}: {name}: expected 1 tensor, got 0"


def test_weights_in_the_other_fp8(checkpoint):
    name = f"{LINEAR}.weight"
    message = message_after(checkpoint, name, checkpoint.tensors[name].float().to(torch.float8_e5m2))
    assert message == f"{checkpoint.file}: {name}: expected F8_E4M3, got F8_E5M2"


def test_an_fp8_tensor_for_a_module_that_is_not(checkpoint):
    checkpoint.tensors["lm_head.weight_scale_inv"] = torch.ones(1, 2)
    message = message_after(checkpoint, "lm_head.weight", torch.ones(96, 256).to(FP8))
    assert message == (
        f"{checkpoint.file}: lm_head.weight: expected float32, got F8_E4M3; see modules_to_not_convert"
    )


def test_a_float_tensor_for_an_fp8_module(checkpoint):
    name = f"{LINEAR}.weight"
    message = message_after(checkpoint, name, checkpoint.tensors[name].bfloat16())
    assert message == f"{checkpoint.file}: {name}: expected F8_E4M3, got BF16; see modules_to_not_convert"


def test_a_module_that_is_not_converted_may_be_float(checkpoint):
    name = f"{LINEAR}.weight"
    checkpoint.configure(modules_to_not_convert=["lm_head", LINEAR])
    checkpoint.rewrite({name: checkpoint.model.get_parameter(name).data, f"{name}_scale_inv": None})
    assert load(checkpoint.path).get_parameter(name).dtype == torch.float32


@pytest.mark.parametrize("block_size", [[1, 128], [64, 64]])
def test_other_blocks(checkpoint, block_size):
    checkpoint.configure(weight_block_size=block_size)
    message = refusal(checkpoint.path)
    assert message == f"{checkpoint.path}: weight_block_size: expected [128, 128], got {block_size}"


def test_one_scale_factor_for_stacked_experts(checkpoint):
    checkpoint.configure(weight_block_size=None)
    wanted = "expected experts with weight_block_size [128, 128], got None"
    assert refusal(checkpoint.path) == f"model.layers.1.mlp.experts: {wanted}"


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [("expert_dtype", "fp4", "fp8"), ("modules_to_convert", ["embed_tokens"], None)],
)
def test_formats_that_moela_does_not_have(checkpoint, name, value, wanted):
    if not hasattr(FineGrainedFP8Config(), name):
        pytest.skip(f"this transformers has no {name}")
    checkpoint.configure(**{name: value})
    assert refusal(checkpoint.path) == f"{checkpoint.path}: {name}: expected {wanted}, got {value}"


def test_layers_that_moela_does_not_have(checkpoint):
    class FP8GroupedLinear(FP8Linear):
        pass

    model = load(checkpoint.path)
    for module in model.modules():
        if isinstance(module, FP8Linear):
            module.__class__ = FP8Linear
    model.get_submodule(LINEAR).__class__ = FP8GroupedLinear
    with pytest.raises(
        ValueError, match=f"^{LINEAR}: expected FP8Linear or FP8Experts, got FP8GroupedLinear$"
    ):
        take_over(model)
    types = {type(module) for module in model.modules() if isinstance(module, FP8Linear)}
    assert types == {FP8Linear, FP8GroupedLinear}


def test_a_refused_checkpoint_loads_once_it_is_repaired(checkpoint):
    name = f"{EXPERT}.weight_scale_inv"
    sf = checkpoint.tensors[name]
    message_after(checkpoint, name, None)
    checkpoint.rewrite({name: sf})
    assert load(checkpoint.path) is not None


# --- headers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a safetensors file, got 0 bytes"),
        (b"\x07" * 7, "expected a safetensors file, got 7 bytes"),
        (b"\xff" * 64, "expected the header of a safetensors file, got something else"),
        ((64).to_bytes(8, "little") + b"{}", "expected a header of 64 bytes, got 2: cut off"),
        ((2).to_bytes(8, "little") + b"{]", "expected the header of a safetensors file, got something else"),
        ((2).to_bytes(8, "little") + b"{}x", "expected 10 bytes, got 11: too long"),
    ],
)
def test_what_is_no_safetensors_file(tmp_path, content, message):
    file = tmp_path / "a.safetensors"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="expected") as caught:
        read_header(file)
    assert str(caught.value) == f"{file}: {message}"


@pytest.mark.parametrize("offsets", [[0, 3], [-4, 0], [4, 0]])
def test_a_tensor_whose_bytes_do_not_fit_its_shape(tmp_path, offsets):
    file = tmp_path / "a.safetensors"
    text = b'{"t":{"dtype":"F32","shape":[1],"data_offsets":%s}}' % str(offsets).encode()
    begin = len(text).to_bytes(8, "little") + text
    file.write_bytes(begin + bytes(max(*offsets, 0)))
    with pytest.raises(ValueError, match=r"expected .* bytes, got ") as caught:
        read_header(file)
    assert str(caught.value).startswith(f"{file}: ")


def test_a_folder_and_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match="expected a safetensors file, got a folder"):
        read_header(tmp_path)
    with pytest.raises(ValueError, match="expected a readable file, got: No such file"):
        read_header(tmp_path / "none")
