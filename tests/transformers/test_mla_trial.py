"""Which layers `moela.patch` takes over as latent attention, and which it leaves, and why."""

import functools
import importlib
import inspect
import re
from pathlib import Path

import models
import moela
import pytest
import torch
from moela.integrations.transformers.mla_trial import EXPANDED, find_mla
from moela.integrations.transformers.takeover import Takeover
from torch import nn

_SIZES = models._COMMON | models._MLA | models._EXPERTS | models._ONE_GROUP | models._INDEX
_HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
TAKEN = {
    ("axk1", "AXK1Attention"): {},
    ("axk2", "AXK2Attention"): {},
    ("bailing_hybrid", "BailingHybridAttention"): _HYBRID,
    ("deepseek_v2", "DeepseekV2Attention"): {},
    ("deepseek_v3", "DeepseekV3Attention"): {},
    ("deepseek_v32", "DeepseekV32Attention"): {},
    ("dots3_note", "Dots3NoteTextAttention"): {"num_hidden_layers": 42},
    ("glm4_moe_lite", "Glm4MoeLiteAttention"): {},
    ("glm_moe_dsa", "GlmMoeDsaAttention"): {},
    ("kimi_linear", "KimiLinearAttention"): _HYBRID,
    ("longcat_flash", "LongcatFlashMLA"): {},
    ("minicpm3", "MiniCPM3Attention"): {},
    ("mistral4", "Mistral4Attention"): {},
    ("youtu", "YoutuAttention"): {},
}
REFUSED = {
    ("hy_v4", "HYV4Attention"): "absorbed, its attention is another than",  # it has sinks
    ("mistral_large4", "MistralLarge4TextAttention"): "it cannot be tried out: TypeError: .*shared_kv_states",
}


def layer_of(model: str, name: str, **options) -> nn.Module:
    module = pytest.importorskip(f"transformers.models.{model}.modeling_{model}")
    cls = getattr(module, name, None)
    if not hasattr(cls, "expand_kv"):
        pytest.skip("this release has no such layer, or caches the keys of every head")
    configs = importlib.import_module(f"transformers.models.{model}.configuration_{model}")
    for config_class in vars(configs).values():
        is_own = inspect.isclass(config_class) and config_class.__module__ == configs.__name__
        if is_own and "kv_lora_rank" in inspect.signature(config_class).parameters:
            config = config_class(**_SIZES | options)
            config._attn_implementation = "eager"
            return cls(config, 1)
    raise AssertionError(f"no configuration of {model} has a kv_lora_rank")


@pytest.mark.parametrize(("model", "name"), TAKEN)
def test_takes_layers_that_are_the_same_absorbed(model, name):
    found = find_mla(layer_of(model, name, **TAKEN[model, name]))
    if found == EXPANDED and models.version() < (5, 24):
        pytest.skip("this release caches the keys of every head")
    assert isinstance(found, Takeover), found
    assert found.ops[0] == "mla_decode"


@pytest.mark.parametrize(("model", "name"), REFUSED)
def test_leaves_others_and_says_why(model, name):
    found = find_mla(layer_of(model, name))
    assert isinstance(found, str)
    assert re.search(REFUSED[model, name], found), found


def test_every_layer_with_latents_is_on_one_of_the_lists():
    """So that a new model of a new release is looked at."""
    if models.version() != (5, 24):
        pytest.skip("the lists are those of transformers 5.24")
    listed = {model for model, _ in (*TAKEN, *REFUSED)} | {"glm5_next", "hy_v4_vl"}  # inside others only
    folder = importlib.import_module("transformers.models").__path__[0]
    with_latents = {
        path.parent.name
        for path in Path(folder).glob("*/modeling_*.py")
        if "def expand_kv" in path.read_text()
    }
    assert with_latents == listed


class TestPlantedFaults:
    """Layers that look like latent attention and compute something else."""

    def layer(self) -> nn.Module:
        return layer_of("deepseek_v3", "DeepseekV3Attention")

    def changed(self, **methods) -> nn.Module:
        layer = self.layer()
        layer.__class__ = type("Changed", (type(layer),), methods)
        return layer

    def test_keys_that_are_normalized(self):
        def expand_kv(self, kv_nope, k_rot):
            keys, values = super(type(self), self).expand_kv(kv_nope, k_rot)
            return nn.functional.normalize(keys, dim=-1), values

        assert "its attention is another" in find_mla(self.changed(expand_kv=expand_kv))

    def test_keys_and_values_the_other_way_round(self):
        def expand_kv(self, kv_nope, k_rot):
            B, _, S, _ = kv_nope.shape
            kv = (
                self.kv_b_proj(kv_nope)
                .view(B, S, -1, self.qk_nope_head_dim + self.v_head_dim)
                .transpose(1, 2)
            )
            values, keys = kv.split([self.v_head_dim, self.qk_nope_head_dim], -1)
            return torch.cat([keys, k_rot.expand(-1, kv.size(1), -1, -1)], -1), values

        assert "its attention is another" in find_mla(self.changed(expand_kv=expand_kv))

    @pytest.mark.parametrize("factors", [(2, 2), (2, 1), (1, 2)])
    def test_keys_or_values_that_change_on_the_way_to_attention(self, factors):
        theirs = type(self.layer()).forward

        @functools.wraps(theirs)
        def forward(self, *args, **kwargs):
            expand = self.expand_kv
            self.expand_kv = lambda *latents: tuple(
                t if f == 1 else f * t for f, t in zip(factors, expand(*latents), strict=True)
            )
            return theirs(self, *args, **kwargs)

        assert "it cannot be tried out: RuntimeError: moela_mla: expected the latents" in find_mla(
            self.changed(forward=forward)
        )

    def test_an_instance_with_an_expansion_of_its_own(self):
        layer = self.layer()
        layer.expand_kv = lambda kv_nope, k_rot: (kv_nope, k_rot)
        assert find_mla(layer) == "this instance has a expand_kv of its own"

    def test_a_biased_projection(self):
        layer = self.layer()
        layer.kv_b_proj.bias = nn.Parameter(torch.zeros(layer.kv_b_proj.out_features))
        assert find_mla(layer) == "its kv_b_proj has a bias"

    def test_a_projection_of_another_class(self):
        layer = self.layer()
        layer.kv_b_proj = nn.Sequential(layer.kv_b_proj)
        assert find_mla(layer) == "its kv_b_proj is a Sequential"

    def test_an_attention_whose_masks_say_less(self):
        layer = self.layer()
        layer.config._attn_implementation = "flash_attention_2"
        assert find_mla(layer) == "its attention is flash_attention_2, expected eager or sdpa"


def test_nothing_is_taken_from_the_values_of_a_model_and_nothing_changed():
    model = models.build("deepseek_v3")
    if not models.has_latents(model):
        pytest.skip("this release caches the keys of every head")
    before, state = dict(model.state_dict()), torch.get_rng_state()
    for p in model.parameters():
        p.data.fill_(torch.nan)
    assert moela.patch(model, experts=False, router=False, linear=False).count("patched") == 2
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.isnan(t).all() for n, t in before.items() if "weight" in n)
