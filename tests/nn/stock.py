"""Small mixture-of-experts blocks of transformers, of every model that has one."""

import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

NEWEST = (5, 24)  # the transformers that the lists of these tests are about
E, TOPK, HIDDEN = 16, 4, 64
SIZES = {
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 32,
    "shared_intermediate_size": 32,
    "expert_ffn_hidden_size": 32,
    "moe_hidden_size": 48,
    "router_hidden_size": 32,
    "vocab_size": 100,
    "zero_expert_num": 2,
    "n_group": 4,
    "topk_group": 2,
}
SIZES |= dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), E)
SIZES |= dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "moe_top_k"), TOPK)
SIZES |= dict.fromkeys(("n_shared_experts", "num_shared_experts"), 1)


def modeling(model: str) -> ModuleType:
    """Skips the test where the installed transformers has no such model."""
    return pytest.importorskip(f"transformers.models.{model}.modeling_{model}")


def block_of(model: str, name: str, seed: int = 0, **options: object) -> nn.Module:
    """A block with random parameters; options are those of the config, and win over SIZES."""
    cls = getattr(modeling(model), name, None) or pytest.skip(f"{model} has no {name} here")
    configs = importlib.import_module(f"transformers.models.{model}.configuration_{model}")
    reasons = []
    for config_class in [c for n, c in vars(configs).items() if n.endswith("Config") and inspect.isclass(c)]:
        if config_class.__module__ != configs.__name__:
            continue
        for more in ((), (3,)):  # some take the index of their layer: not the first, which may be special
            try:
                block = cls(small(config_class(), options), *more)
            except Exception as error:  # of another's code
                reasons.append(f"{config_class.__name__}: {error}")
                continue
            g = torch.Generator().manual_seed(seed)
            for p in (*block.parameters(), *block.buffers()):
                if p.is_floating_point():
                    p.data.copy_(torch.randn(p.shape, generator=g) * 0.2)
            return block.eval()
    skip_if_older(f"cannot build {model}'s {name}: {reasons}")
    raise AssertionError(f"cannot build {model}'s {name}: {reasons}")


def is_newest() -> bool:
    version = importlib.import_module("transformers").__version__
    return tuple(map(int, version.split(".")[:2])) >= NEWEST


def skip_if_older(reason: str) -> None:
    """For what only older releases of transformers do."""
    if not is_newest():
        pytest.skip(f"in this transformers: {reason}")


def small(config, options: dict[str, object]):
    for name, value in SIZES.items():
        try:
            old = getattr(config, name)
        except Exception:  # of the config: it has none, or one a layer
            continue
        has_no_groups = name in ("n_group", "topk_group") and old is None
        if not isinstance(old, (list, tuple)) and not has_no_groups:
            setattr(config, name, value)
    for name, value in options.items():
        setattr(config, name, value)
    config._experts_implementation = "eager"
    return config


def router_of(block: nn.Module) -> nn.Module:
    return block.gate if hasattr(block, "gate") else block.router


def blocks_with_a_router() -> set[tuple[str, str]]:
    """(model, class) of every module of transformers with experts and a gate or a router, by its source."""
    root = Path(importlib.import_module("transformers").__file__).parent / "models"
    found = set()
    for path in sorted(root.glob("*/modeling_*.py")):
        for text in re.split(r"^(?=class )", path.read_text(), flags=re.MULTILINE):
            has_parts = re.search(r"self\.experts = ", text) and re.search(r"self\.(gate|router) = ", text)
            name = re.match(r"class (\w+)", text)
            is_block = has_parts and not re.search(r"(Decoder|Encoder)\w*Layer", name[1])
            if is_block and path.stem == f"modeling_{path.parent.name}":
                found.add((path.parent.name, name[1]))
    return found
