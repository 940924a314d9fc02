"""transformers' FP8 modules with moela's forward, by class: they run whatever experts_implementation says."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.finegrained_fp8 import FP8Experts, FP8Linear

from moela.integrations.transformers.experts import fp8_experts_forward
from moela.integrations.transformers.fp8_checkpoint import BLOCK
from moela.integrations.transformers.linear import fp8_linear_forward
from moela.nn import run_fp8_linear


class MoelaFP8Linear(FP8Linear):
    """One scale factor per 128 x 128 block."""

    forward = fp8_linear_forward


class MoelaPerTensorFP8Linear(FP8Linear):
    """One scale factor per tensor: every block's."""

    def forward(self, input: Tensor) -> Tensor:
        N, K = self.weight.shape
        sf = self.weight_scale_inv.reshape(1, 1).expand(-(-N // BLOCK), -(-K // BLOCK))
        return run_fp8_linear(input, self.weight, sf, self.bias)


class MoelaFP8Experts(FP8Experts):
    forward = fp8_experts_forward


def fp8_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if isinstance(module, (FP8Linear, FP8Experts)):
            yield name, module


def take_over(model: nn.Module) -> None:
    """Give every FP8 module of `model` moela's class.

    Raises:
        ValueError: it has one that moela does not run; the model is left as it was.
    """
    classes = [(module, _class_of(name, module)) for name, module in fp8_modules(model)]
    for module, new_class in classes:
        module.__class__ = new_class


def _class_of(name: str, module: nn.Module) -> type[nn.Module]:
    is_blockwise = module.block_size is not None
    if isinstance(module, FP8Experts):
        if not is_blockwise:
            raise ValueError(f"{name}: expected experts with weight_block_size [128, 128], got None")
        return MoelaFP8Experts
    if type(module) is not FP8Linear:
        raise ValueError(f"{name}: expected FP8Linear or FP8Experts, got {type(module).__name__}")
    return MoelaFP8Linear if is_blockwise else MoelaPerTensorFP8Linear


def scale_factor_names(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_parameters(recurse=False) if name.endswith("_scale_inv")]


def declare_scale_factors(module: nn.Module, name: str, dtype: torch.dtype | None = None) -> None:
    """Make a module's scale factors, still without memory, what the checkpoint has; None: dtype as it is.

    transformers gives gate_up_proj ceil(2*I/128) rows of them; gate and up have blocks of their own.
    """
    sf = getattr(module, name)
    shape = sf.shape
    if name == "gate_up_proj_scale_inv":
        rows = module.gate_up_proj.size(1) // 2
        shape = (shape[0], 2 * -(-rows // BLOCK), shape[2])
    declared = torch.empty(shape, dtype=dtype or sf.dtype, device="meta")
    setattr(module, name, nn.Parameter(declared, requires_grad=False))


def declare_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Give weights that are still to be quantized the dtype that they are loaded in.

    From 5.12 to 5.22 transformers casts them to FP8 first, without scale factors.
    """
    for name, weight in list(module.named_parameters(recurse=False)):
        if weight.dtype == torch.float8_e4m3fn:
            setattr(module, name, nn.Parameter(weight.to(dtype), requires_grad=False))


def check_config(quantization_config: Any, config: Any) -> None:
    """Check what the config says: FP8 for linear layers and experts, by blocks of 128 x 128 or per tensor."""
    path = getattr(config, "_name_or_path", "") or type(config).__name__
    block_size = quantization_config.weight_block_size
    if block_size is not None and tuple(block_size) != (BLOCK, BLOCK):
        raise ValueError(f"{path}: weight_block_size: expected [{BLOCK}, {BLOCK}], got {list(block_size)}")
    # Releases that do not have these do not have what they stand for.
    for name, wanted in (("expert_dtype", "fp8"), ("modules_to_convert", None)):
        got = getattr(quantization_config, name, wanted)
        if got != wanted:
            raise ValueError(f"{path}: {name}: expected {wanted}, got {got}")
