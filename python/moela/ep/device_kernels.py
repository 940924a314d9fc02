"""Which kernels exchange rows on a device: those for Hopper, or those in Triton."""

import torch

from moela import backends
from moela.ep.device import Kernels

OPS = ("send", "place", "receive", "combine_send", "combine_receive")


def kernels_for(device: torch.device, row_bytes: int) -> Kernels:
    """Raises ValueError where there are none for this device."""
    is_hopper = device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0)
    if is_hopper and _has_compiled() and backends.forced() in (None, "cuda"):
        from moela.ep import hopper

        if hopper.has_room(row_bytes):
            return hopper.KERNELS
    if why_not_triton():
        raise ValueError(f"no kernels for {device}: {why_not_triton()}")
    from moela.kernels import ep_combine, ep_dispatch

    return Kernels(
        ep_dispatch.send,
        ep_dispatch.place,
        ep_dispatch.receive,
        ep_combine.combine_send,
        ep_combine.combine_receive,
    )


def why_not() -> str | None:
    """Why this process has no kernels for any GPU; None: it has."""
    return None if _has_compiled() else why_not_triton()


def why_not_triton() -> str | None:
    return backends.why_not("triton", "ep_dispatch", "cuda")


def _has_compiled() -> bool:
    library = backends.library("cuda")
    return library.handle is not None and torch._C._dispatch_has_kernel_for_dispatch_key(
        "moela_ep::send", "CUDA"
    )
