"""Which devices transformers' own FP8 kernels run on."""

from typing import Any

import torch

_AUTOMATIC = ("auto", "balanced", "balanced_low_0", "sequential")


def all_multiply_fp8(device_map: Any) -> bool:
    """Whether every device that `from_pretrained(device_map=…)` fills has tensor cores for FP8."""
    if device_map is None:
        return False  # the CPU
    if isinstance(device_map, dict):
        devices = set(device_map.values())
    elif device_map in _AUTOMATIC:
        devices = set(range(torch.cuda.device_count()))
    else:
        devices = {device_map}
    return bool(devices) and all(_multiplies_fp8(device) for device in devices)


def _multiplies_fp8(device: Any) -> bool:
    if device == "disk":
        return False
    device = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    if device.type == "cuda":
        return torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= (8, 9)
    return device.type == "xpu"
