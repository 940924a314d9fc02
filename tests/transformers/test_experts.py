"""Every class of experts that this release of transformers has, on moela: forward, gradients, odd inputs."""

import ast
import copy
import functools
import importlib
from pathlib import Path
from typing import Any

import models
import moela
import pytest
import torch
import transformers
from moela.integrations.transformers.experts import experts_forward
from moela.integrations.transformers.gates import gate_of
from moela.nn import SwiGlu
from torch import Tensor, nn

E, TOPK, LIMIT, ALPHA = 5, 2, 1.5, 1.702
SIZES = {"intermediate_size": 24, "moe_intermediate_size": 24, "intermediate_dim": 24}


@functools.cache
def classes() -> list[str]:
    """module:class of what stands under the decorator."""
    found = []
    for path in sorted(Path(transformers.__file__).parent.glob("models/*/modeling_*.py")):
        text = path.read_text()
        if "@use_experts_implementation" not in text:
            continue
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef):
                decorators = [getattr(d, "func", d) for d in node.decorator_list]
                if "use_experts_implementation" in [getattr(d, "id", None) for d in decorators]:
                    found.append(f"{path.parent.name}.{path.stem}:{node.name}")
    return found


class Settings:
    """A configuration with an answer to every question that an experts class asks."""

    _experts_implementation = "eager"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "text_config":
            return self
        if name in SIZES or "size" in name:
            return SIZES.get(name, 32)
        answers = {"act": "silu", "alpha": ALPHA, "limit": LIMIT, "eps": 1e-6, "cap": 3.0}
        return next((v for part, v in answers.items() if part in name), E)


def made(name: str) -> nn.Module:
    module, _, class_name = name.partition(":")
    cls = getattr(importlib.import_module(f"transformers.models.{module}"), class_name)
    try:
        experts = cls(Settings())
    except TypeError:  # the width is an argument of its own
        experts = cls(Settings(), SIZES["intermediate_size"])
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in experts.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * (0.3 if p.dim() > 1 else 0.5))
    return experts


def arguments(experts: nn.Module, T: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    H = experts.down_proj.size(2 if experts.is_transposed else 1)
    ids = torch.rand(T, E, generator=g).argsort(1)[:, :TOPK]
    return torch.randn(T, H, generator=g), ids, torch.rand(T, TOPK, generator=g)


def run(experts: nn.Module, implementation: str, args: tuple[Tensor, ...]) -> Tensor:
    experts.config._experts_implementation = implementation
    return experts(*args)


@pytest.fixture(autouse=True, scope="module")
def registered():
    moela.register()


@pytest.mark.parametrize("name", classes())
def test_outputs_and_gradients_are_those_of_transformers_within_rounding(name):
    experts = made(name)
    x, ids, weights = arguments(experts)

    def all_of(experts: nn.Module, implementation: str, dtype: torch.dtype) -> dict[str, Tensor]:
        leaves = {n: t.clone().to(dtype).requires_grad_() for n, t in (("x", x), ("weights", weights))}
        experts.zero_grad()
        out = run(experts, implementation, (leaves["x"], ids, leaves["weights"]))
        out.square().sum().backward()
        leaves |= dict(experts.named_parameters())
        return {"out": out.detach().double()} | {n: t.grad.double() for n, t in leaves.items()}

    # Not eager, which some classes round to float32.
    exact = all_of(copy.deepcopy(experts).double(), "batched_mm", torch.float64)
    stock = [models.worst(all_of(experts, s, torch.float32), exact) for s in ("eager", "grouped_mm")]
    with torch.no_grad():
        one_op = run(experts, "moela", (x, ids, weights))
    for mine in (all_of(experts, "moela", torch.float32), {**exact, "out": one_op.double()}):
        assert models.worst(mine, exact) <= 2 * max(stock) + 2.0**-24


@pytest.mark.parametrize("name", classes())
def test_ids_of_experts_elsewhere_contribute_nothing(name):
    """Expert parallelism: an id of num_experts, or above, whatever stands there, NaN too."""
    experts = made(name)
    x, ids, weights = arguments(experts)
    without = weights.clone()
    without[::2, 0] = 0.0
    ids_elsewhere = ids.clone()
    ids_elsewhere[::2, 0] = torch.tensor([E, E + 1, 10 * E, E, E])
    weights[::2, 0] = float("nan")
    wanted = run(experts, "grouped_mm", (x, ids, without))
    for is_trained in (False, True):
        with torch.set_grad_enabled(is_trained):
            got = run(experts, "moela", (x, ids_elsewhere, weights))
        assert models.largest(got - wanted) <= 2.0**-20 * models.largest(wanted)


# The attributes that are the limit and alpha of a SwiGlu; None: it is none.
GATES = {
    "DeepseekV3": (),
    "MixtralExperts": (),
    "DeepseekV4Experts": ("limit",),
    "MiniMaxM3VLExperts": ("swiglu_limit", "swiglu_alpha"),
    "OpenAIPrivacyFilterExperts": ("limit", "alpha"),
    "GptOssExperts": None,  # gate and up rows alternate
    "Inkling2Experts": None,  # soft caps
    "NemotronHExperts": None,  # no gate
}


@pytest.mark.parametrize(("class_name", "attributes"), GATES.items())
def test_gates_are_recognised_by_what_they_compute(class_name, attributes):
    names = [n for n in classes() if n.partition(":")[2].startswith(class_name)]
    if not names:
        pytest.skip(f"transformers {transformers.__version__} has no {class_name}")
    experts = made(names[0])
    if attributes is None:
        assert not isinstance(gate_of(experts), SwiGlu)
    else:
        assert gate_of(experts) == SwiGlu(*(getattr(experts, name) for name in attributes))


class TestGate:
    @pytest.fixture
    def experts(self):
        return made(next(n for n in classes() if n.endswith(":MixtralExperts")))

    def test_another_activation_is_called(self, experts):
        experts.act_fn = nn.GELU()
        assert gate_of(experts) == experts._apply_gate

    def test_another_limit_is_another_gate(self, experts):
        """What was found once does not outlive the attributes that it was found for."""

        def clamped(self, gate_up: Tensor) -> Tensor:
            gate, up = gate_up.chunk(2, dim=-1)
            return self.act_fn(gate.clamp(max=self.limit)) * up.clamp(-self.limit, self.limit)

        experts.__class__ = type("Clamped", (type(experts),), {"_apply_gate": clamped})
        for limit in (2.0, 3.0):
            experts.limit = limit
            assert gate_of(experts) == SwiGlu(limit)
        experts.act_fn = nn.ReLU()
        assert gate_of(experts) == experts._apply_gate

    def test_a_gate_that_differs_beyond_a_limit_is_called(self, experts):
        """Step-3.7 clamps the silu, not what goes into it."""

        def clamped_after(self, gate_up: Tensor) -> Tensor:
            gate, up = gate_up.chunk(2, dim=-1)
            return self.act_fn(gate).clamp(max=self.limit) * up.clamp(-self.limit, self.limit)

        experts.__class__ = type("ClampedAfter", (type(experts),), {"_apply_gate": clamped_after})
        experts.limit = 7.0
        assert gate_of(experts) == experts._apply_gate


class TestArguments:
    @pytest.fixture
    def experts(self):
        return made(next(n for n in classes() if n.endswith(":GptOssExperts")))

    @pytest.mark.parametrize("T", [0, 1])
    def test_no_token_and_one(self, experts, T):
        args = arguments(experts, T)
        got = run(experts, "moela", args)
        assert got.shape == args[0].shape
        assert torch.allclose(got, run(experts, "eager", args), rtol=2.0**-18, atol=1e-6)

    def test_by_the_names_that_gpt_oss_has_and_others_have(self, experts):
        x, ids, weights = arguments(experts)
        wanted = experts_forward(experts, x, ids, weights)
        named = experts_forward(experts, x, router_indices=ids, routing_weights=weights)
        assert torch.equal(named, wanted)
        named = experts_forward(experts, hidden_states=x, top_k_index=ids, top_k_weights=weights)
        assert torch.equal(named, wanted)

    def test_rows_that_are_no_block_of_memory(self, experts):
        x, ids, weights = arguments(experts)
        wanted = run(experts, "moela", (x, ids, weights))
        strided = x.T.contiguous().T, ids.T.contiguous().T, weights.T.contiguous().T
        assert torch.equal(run(experts, "moela", strided), wanted)

    def test_the_result_has_the_dtype_of_the_hidden_states(self, experts):
        """Under autocast they differ from the weights."""
        x, ids, weights = arguments(experts)
        for dtype in (torch.bfloat16, torch.float32):
            experts.to(dtype)
            for x_dtype in (torch.bfloat16, torch.float32):
                assert run(experts, "moela", (x.to(x_dtype), ids, weights)).dtype == x_dtype
