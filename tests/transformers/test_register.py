"""`moela.register`: "moela" as a name for `experts_implementation`, and nothing without it."""

import os
import subprocess
import sys

import models
import moela
import pytest
import torch
import transformers
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

NAME = {"experts_implementation": "moela"}


def python(code: str) -> str:
    env = {k: v for k, v in os.environ.items() if not k.startswith("MOELA_")}
    result = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_import_registers_nothing_and_register_does():
    code = """
import moela
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS as bf16
from transformers.integrations.finegrained_fp8 import ALL_FP8_EXPERTS_FUNCTIONS as fp8
print("moela" in bf16, "moela" in fp8)
moela.register()
print("moela" in bf16, "moela" in fp8)
"""
    assert python(code).split() == ["False", "False", "True", "True"]


def test_moela_does_not_import_transformers():
    assert python("import moela, moela.nn, sys; print('transformers' in sys.modules)").split() == ["False"]


def test_twice_is_once():
    moela.register()
    before, check = (
        dict(ALL_EXPERTS_FUNCTIONS),
        transformers.PreTrainedModel.get_correct_experts_implementation,
    )
    moela.register()
    assert dict(ALL_EXPERTS_FUNCTIONS) == before
    assert transformers.PreTrainedModel.get_correct_experts_implementation is check


def runs_on_moela(model) -> bool:
    with moela.use_backend("reference"), torch.no_grad(), torch.profiler.profile() as profile:
        model(**models.prompt())
    return any(event.key == "moela::fused_experts" for event in profile.key_averages())


@pytest.fixture(autouse=True, scope="module")
def registered():
    moela.register()


def test_a_model_can_be_made_with_it():
    config = models.config_of("mixtral")
    assert runs_on_moela(transformers.AutoModelForCausalLM.from_config(config, **NAME).eval())


def test_a_model_can_be_loaded_with_it(tmp_path):
    model = models.build("deepseek_v3")
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, **NAME)
    assert runs_on_moela(loaded)
    assert "moela" not in (tmp_path / "config.json").read_text()
    stock = models.logits_of(model, models.prompt())
    distance = models.largest(models.logits_of(loaded, models.prompt()) - stock)
    assert distance < 2.0**-16 * models.largest(stock)


def test_a_model_can_be_switched_to_it_and_back():
    model = models.build("qwen3_moe")
    before = models.logits_of(model, models.prompt())
    model.set_experts_implementation("moela")
    assert runs_on_moela(model)
    model.set_experts_implementation("eager")
    assert torch.equal(models.logits_of(model, models.prompt()), before)


def test_other_names_are_refused_as_before():
    with pytest.raises(ValueError, match='experts_implementation="moella"'):
        models.build("mixtral").set_experts_implementation("moella")


CALLS = {"register": (), "patch": (torch.nn.ReLU(),), "unpatch": (torch.nn.ReLU(),)}


@pytest.mark.parametrize("name", CALLS)
def test_without_transformers_one_line_says_what_to_install(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError) as error:
        getattr(moela, name)(*CALLS[name])
    assert str(error.value) == (
        f"moela.{name}: transformers is not installed: needs transformers 5.4 or later; "
        "pip install 'transformers>=5.4'"
    )


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("version", ["4.57.1", "5.3.0", "5.3.1.dev0"])
def test_an_old_transformers_is_named(name, version, monkeypatch):
    monkeypatch.setattr(sys.modules["transformers"], "__version__", version)
    message = (
        rf"^moela\.{name}: transformers {version} is too old: needs transformers 5\.4 or later; pip install"
    )
    with pytest.raises(ImportError, match=message):
        getattr(moela, name)(*CALLS[name])
