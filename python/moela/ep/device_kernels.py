"""Which kernels exchange rows on a device: those for Hopper, or those in Triton."""

import importlib

import torch

from moela import backends
from moela.ep import hopper
from moela.ep.device import Kernels


def kernels_for(device: torch.device, row_bytes: int) -> Kernels:
    """Raises ValueError where there are none for this device; MOELA_BACKEND leaves only those it names."""
    reasons = {}
    for name in ("cuda", "triton"):
        reasons[name] = _why_not(name, device, row_bytes)
        if reasons[name] is None:
            return hopper.KERNELS if name == "cuda" else _in_triton()
    raise ValueError(f"no kernels for {device}: {reasons}")


def _why_not(name: str, device: torch.device, row_bytes: int) -> str | None:
    if backends.forced() not in (None, name):
        return f"switched off by MOELA_BACKEND={backends.forced()}"
    if name == "triton":
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
