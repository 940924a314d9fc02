"""Which kernels exchange rows on a device: those for Hopper, or those in Triton."""

import importlib

import torch

from moela import backends
from moela.ep import hopper
from moela.ep.device import Kernels

BACKENDS = ("cuda", "triton")


def kernels_for(device: torch.device, row_bytes: int) -> Kernels:
    """Those of the backend that the caller names, by `use_backend` or MOELA_BACKEND; else the first usable.

    Raises ValueError where there are none for this device.
    """
    named = backends.named()
    is_by_name_only = "ep_dispatch" in backends.UNVERIFIED_CUDA
    names = (named,) if named else tuple(n for n in BACKENDS if n != "cuda" or not is_by_name_only)
    reasons = {name: why_not_on(name, device, row_bytes) for name in names}
    usable = next((name for name, reason in reasons.items() if reason is None), None)
    if usable is None:
        raise ValueError(f"no kernels for {device}: {reasons}")
    return hopper.KERNELS if usable == "cuda" else _in_triton()


def why_not_on(backend: str, device: torch.device, row_bytes: int) -> str | None:
    """Why the kernels of a backend cannot be used; None: they can."""
    if backend not in BACKENDS:
        return f"expected one of {', '.join(BACKENDS)}"
    if backend == "triton":
        return backends.why_not("triton", "ep_dispatch", device)
    if torch.cuda.get_device_capability(device) != (9, 0):
        return "built for Hopper"
    return hopper.why_not(row_bytes)


def _in_triton() -> Kernels:
    dispatch, combine = (
        importlib.import_module(f"moela.kernels.{op}") for op in ("ep_dispatch", "ep_combine")
    )
    return Kernels(
        dispatch.send, dispatch.place, dispatch.receive, combine.combine_send, combine.combine_receive
    )


def why_not() -> str | None:
    """Why the current GPU has no kernels, for rows of any size; None: it has."""
    device = torch.device("cuda", torch.cuda.current_device())
    try:
        kernels_for(device, 0)
    except ValueError as error:
        return str(error)
    return None
