"""What moela takes of transformers' FP8 layers, and how it multiplies them."""

import torch
from torch import Tensor, nn

BLOCK_SIZE = (128, 128)


def is_quantized(weight: Tensor) -> bool:
    """Whether the layer has codes: transformers leaves some of its FP8 layers in the model's dtype."""
    return weight.element_size() == 1


def why_not(layer: nn.Module, weight: Tensor) -> str | None:
    """None if moela multiplies this layer's codes, else "<attribute>: expected <what>, got <what>"."""
    if weight.dtype != torch.float8_e4m3fn:
        return f"weight: expected float8_e4m3fn, got {str(weight.dtype).removeprefix('torch.')}"
    block_size = layer.block_size and tuple(layer.block_size)
    if block_size != BLOCK_SIZE:
        return f"block_size: expected {BLOCK_SIZE}, got {block_size}"
    return None


def require(caller: str, layer: nn.Module, weight: Tensor) -> None:
    if reason := why_not(layer, weight):
        raise ValueError(f"{caller}: {reason}")


def quantize_activations(layer: nn.Module, device: torch.device) -> str | None:
    """As the checkpoint says where tensor cores multiply FP8; elsewhere None: more exact, and no slower."""
    has_fp8_products = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)
    return "fp8" if has_fp8_products and layer.activation_scheme == "dynamic" else None
