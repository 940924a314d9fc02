"""moela.enable_cpu_fp8: FP8 checkpoints stay FP8 on the CPU, bit by bit."""

import copy
import warnings

import fp8_checkpoints
import models
import moela
import pytest
import torch
import transformers
from fp8_checkpoints import FP8, load, same_bits
from safetensors.torch import load_file
from transformers import FineGrainedFP8Config
from transformers.quantizers import auto

NAMES = list(fp8_checkpoints.SETTINGS)
SF_DTYPES = [torch.float32, torch.bfloat16, torch.float8_e8m0fnu, torch.uint8]
SF_NAMES = ["weight_scale_inv", "weight_scale", "scale", "qscale_weight"]


@pytest.fixture(autouse=True)
def enabled():
    moela.enable_cpu_fp8()
    yield
    moela.disable_cpu_fp8()


@pytest.fixture(scope="module", params=NAMES)
def checkpoint(request, tmp_path_factory):
    return fp8_checkpoints.write(tmp_path_factory.mktemp(request.param), request.param)


def assert_logits_within_rounding(checkpoint, model):
    """Both this model and the dequantized one in float32 lose float32 roundings along the same path, of which
    moela has no more: twice the other's largest, and one rounding of the result."""
    inputs = models.prompt()
    exact = models.exact_logits(checkpoint.model, inputs)
    stock = models.largest(models.logits_of(checkpoint.model, inputs) - exact)
    mine = models.largest(models.logits_of(model, inputs) - exact)
    assert mine <= 2 * stock + 2.0**-24 * models.largest(exact)


def saved(model, path):
    model.save_pretrained(path)
    return load_file(path / "model.safetensors")


def assert_same_tensors(got, wanted):
    assert set(got) == set(wanted)
    assert [name for name in wanted if not same_bits(got[name], wanted[name])] == []


def test_logits_are_those_of_the_dequantized_model_within_rounding(checkpoint):
    assert_logits_within_rounding(checkpoint, load(checkpoint.path))


def test_greedy_tokens_are_those_of_the_dequantized_model(checkpoint):
    inputs = {k: v for k, v in models.prompt().items() if k != "position_ids"}
    options = {"max_new_tokens": 6, "do_sample": False}
    wanted = checkpoint.model.generate(**inputs, **options)
    assert torch.equal(load(checkpoint.path).generate(**inputs, **options), wanted)


def test_every_quantized_layer_stays_fp8(checkpoint):
    model = load(checkpoint.path)
    in_files = sum(t.numel() for t in checkpoint.tensors.values() if t.dtype == FP8)
    assert sum(p.numel() for p in model.parameters() if p.dtype == FP8) == in_files


def test_saving_gives_the_tensors_of_the_checkpoint(checkpoint, tmp_path):
    assert_same_tensors(saved(load(checkpoint.path), tmp_path), checkpoint.tensors)


def test_a_saved_model_loads_again(checkpoint, tmp_path):
    model = load(checkpoint.path)
    model.save_pretrained(tmp_path)
    inputs = models.prompt()
    again = models.logits_of(load(tmp_path), inputs)
    assert torch.equal(again, models.logits_of(model, inputs))


@pytest.mark.parametrize("sf_name", SF_NAMES)
@pytest.mark.parametrize("sf_dtype", SF_DTYPES, ids=str)
def test_scale_factors_of_any_dtype_and_name(sf_dtype, sf_name, tmp_path):
    checkpoint = fp8_checkpoints.write(tmp_path, sf_dtype=sf_dtype, sf_name=sf_name)
    model = load(tmp_path)
    assert_logits_within_rounding(checkpoint, model)
    wanted = checkpoint.tensors
    if models.version() < (5, 22):  # these cannot undo a renaming
        wanted = {name.replace(sf_name, SF_NAMES[0]): tensor for name, tensor in wanted.items()}
    assert_same_tensors(saved(model, tmp_path / "saved"), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_activations_have_the_dtype_that_is_asked_for(name, dtype, tmp_path):
    fp8_checkpoints.write(tmp_path, name, dtype=dtype)
    model = load(tmp_path, dtype)
    with torch.no_grad():
        logits = model(**models.prompt()).logits
    assert logits.dtype == dtype
    assert logits.isfinite().all()


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm", "moela"])
def test_any_experts_implementation_runs_on_moela(checkpoint, implementation):
    moela.register()
    inputs = models.prompt()
    wanted = models.logits_of(load(checkpoint.path), inputs)
    model = load(checkpoint.path, experts_implementation=implementation)
    assert torch.equal(models.logits_of(model, inputs), wanted)


def test_patching_and_unpatching_leaves_it_running(checkpoint):
    model, inputs = load(checkpoint.path), models.prompt()
    moela.patch(model)
    moela.unpatch(model)
    assert_logits_within_rounding(checkpoint, model)
    assert models.logits_of(model, inputs).isfinite().all()


def test_copies_and_pickles_run(checkpoint, tmp_path):
    model, inputs = load(checkpoint.path), models.prompt()
    wanted = models.logits_of(model, inputs)
    torch.save(model, tmp_path / "model.pt")
    unpickled = torch.load(tmp_path / "model.pt", weights_only=False)
    for again in (copy.deepcopy(model), unpickled):
        assert torch.equal(models.logits_of(again, inputs), wanted)
    assert_same_tensors(saved(unpickled, tmp_path / "saved"), checkpoint.tensors)


@pytest.mark.parametrize("layer", [2, 61])
def test_layers_that_the_model_does_not_have_are_ignored(tmp_path, layer):
    """Such as those for multi-token prediction, 61 in DeepSeek-V3."""
    checkpoint = fp8_checkpoints.write(tmp_path)
    rows = torch.zeros(16, 256).to(FP8)  # without scale factors
    checkpoint.rewrite({f"model.layers.{layer}.eh_proj.weight": rows})
    assert_logits_within_rounding(checkpoint, load(tmp_path))


def test_names_that_key_mapping_translates(tmp_path):
    if models.version() < (5, 8):
        pytest.skip("transformers < 5.8 does not tell a quantizer what its key_mapping is")
    checkpoint = fp8_checkpoints.write(tmp_path)
    renamed = {name.replace("model.", "net.", 1): tensor for name, tensor in checkpoint.tensors.items()}
    checkpoint.rewrite(dict.fromkeys(checkpoint.tensors) | renamed)
    assert_logits_within_rounding(checkpoint, load(tmp_path, key_mapping={r"^net\.": "model."}))
    with pytest.raises(ValueError, match="expected 1 tensor, got 0"):
        load(tmp_path)


def test_experts_that_are_stacked_in_the_checkpoint(tmp_path):
    """As transformers has them in memory."""
    checkpoint = fp8_checkpoints.write(tmp_path, sf_dtype=torch.bfloat16)
    experts = "model.layers.1.mlp.experts"
    stacked = {
        f"{experts}.{name}": parameter.data
        for name, parameter in load(tmp_path).get_submodule(experts).named_parameters()
    }
    checkpoint.rewrite({name: None for name in checkpoint.tensors if f"{experts}." in name} | stacked)
    model = load(tmp_path)
    assert_logits_within_rounding(checkpoint, model)
    model.save_pretrained(tmp_path / "saved")
    assert_logits_within_rounding(checkpoint, load(tmp_path / "saved"))


def test_one_scale_factor_per_tensor(tmp_path):
    # A model without experts of its own: their stacks need blocks.
    checkpoint = fp8_checkpoints.write(tmp_path, first_k_dense_replace=2)
    for name, tensor in list(checkpoint.tensors.items()):
        if name.endswith("weight_scale_inv"):
            weight = name.removesuffix("_scale_inv")
            checkpoint.tensors[name] = torch.tensor(2.0**-6)
            values = checkpoint.tensors[weight].float() * 2.0**-6
            checkpoint.model.get_parameter(weight).data.copy_(values)
            assert tensor.dim() == 2
    checkpoint.rewrite({})
    checkpoint.configure(weight_block_size=None)
    model = load(tmp_path)
    assert_logits_within_rounding(checkpoint, model)
    assert_same_tensors(saved(model, tmp_path / "saved"), checkpoint.tensors)


def test_a_fixed_scale_of_activations_is_kept_and_not_used(tmp_path):
    checkpoint = fp8_checkpoints.write(tmp_path, "qwen3_moe", mlp_only_layers=[0, 1])
    for name in [each for each in checkpoint.tensors if each.endswith("weight_scale_inv")]:
        checkpoint.tensors[name.replace("weight_scale_inv", "activation_scale")] = torch.tensor(0.5)
    checkpoint.rewrite({})
    checkpoint.configure(activation_scheme="static")
    model = load(tmp_path)
    assert_logits_within_rounding(checkpoint, model)
    assert_same_tensors(saved(model, tmp_path / "saved"), checkpoint.tensors)


@pytest.mark.parametrize("name", NAMES)
def test_a_float_model_is_quantized_while_it_is_loaded(name, tmp_path):
    checkpoint = fp8_checkpoints.write(tmp_path, name)
    original = models.build(name, **fp8_checkpoints.SETTINGS[name])
    original.save_pretrained(tmp_path / "plain")
    model = load(tmp_path / "plain", quantization_config=FineGrainedFP8Config())
    assert_same_tensors(saved(model, tmp_path / "saved"), checkpoint.tensors)
    assert_logits_within_rounding(checkpoint, model)


# --- what goes transformers' own way ---------------------------------------------------------------------


def outcome(path, **options):
    """What loading gives: the dtypes of the weights, or what went wrong."""
    try:
        return {p.dtype for p in load(path, torch.bfloat16, **options).parameters()}
    except Exception as error:
        return type(error), str(error)


def test_disable_gives_transformers_own_way_back(checkpoint):
    moela.disable_cpu_fp8()
    stock = auto.AUTO_QUANTIZER_MAPPING["fp8"]
    wanted = outcome(checkpoint.path)
    moela.enable_cpu_fp8()
    assert FP8 in outcome(checkpoint.path)
    moela.disable_cpu_fp8()
    assert auto.AUTO_QUANTIZER_MAPPING["fp8"] is stock
    assert outcome(checkpoint.path) == wanted
    assert FP8 not in wanted


def test_enabling_and_disabling_twice_is_like_once():
    moela.disable_cpu_fp8()
    stock = dict(auto.AUTO_QUANTIZER_MAPPING)
    moela.enable_cpu_fp8()
    once = dict(auto.AUTO_QUANTIZER_MAPPING)
    moela.enable_cpu_fp8()
    assert once == auto.AUTO_QUANTIZER_MAPPING
    assert once != stock
    moela.disable_cpu_fp8()
    moela.disable_cpu_fp8()
    assert stock == auto.AUTO_QUANTIZER_MAPPING


def test_only_quant_method_fp8_is_taken_over():
    mine = dict(auto.AUTO_QUANTIZER_MAPPING)
    moela.disable_cpu_fp8()
    stock = auto.AUTO_QUANTIZER_MAPPING
    assert {method for method in stock if stock[method] is not mine[method]} == {"fp8"}


def test_a_loaded_model_runs_on_after_disable(checkpoint):
    model = load(checkpoint.path)
    moela.disable_cpu_fp8()
    assert_logits_within_rounding(checkpoint, model)


def test_someone_elses_quantizer_is_left_in_place(monkeypatch):
    class Other:
        pass

    monkeypatch.setitem(auto.AUTO_QUANTIZER_MAPPING, "fp8", Other)
    with pytest.warns(UserWarning, match="not moela's any more but Other; it is left in place"):
        moela.disable_cpu_fp8()
    assert auto.AUTO_QUANTIZER_MAPPING["fp8"] is Other
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        moela.disable_cpu_fp8()  # nothing of moela's is left to undo


def test_dequantize_is_honoured(checkpoint):
    options = {"quantization_config": FineGrainedFP8Config(dequantize=True)}
    got = outcome(checkpoint.path, **options)
    moela.disable_cpu_fp8()
    assert got == outcome(checkpoint.path, **options)
    assert FP8 not in got


@pytest.mark.parametrize(
    ("device_map", "capability", "is_stock"),
    [
        (None, (9, 0), False),
        ({"": "cpu"}, (9, 0), False),
        ({"": 0}, (9, 0), True),
        ({"": "cuda:0"}, (8, 9), True),
        ({"": 0}, (8, 6), False),
        ({"a": 0, "b": "cpu"}, (9, 0), False),
        ({"a": 0, "b": "disk"}, (9, 0), False),
        ("auto", (9, 0), True),
        ("auto", (8, 0), False),
        ("auto", None, False),
    ],
)
def test_gpus_that_multiply_fp8_go_transformers_way(monkeypatch, device_map, capability, is_stock):
    from moela.integrations.transformers.fp8_devices import all_multiply_fp8

    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(capability is not None))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    assert all_multiply_fp8(device_map) == is_stock


def test_loading_says_nothing_of_dequantizing(checkpoint, caplog):
    transformers.utils.logging.enable_propagation()
    load(checkpoint.path)
    transformers.utils.logging.disable_propagation()
    assert "dequantiz" not in caplog.text
