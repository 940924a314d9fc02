"""Which backends there are, which one an op runs on, and why.

>>> print(moela.backends.explain("fp8_gemm", "cpu"))
>>> with moela.use_backend("reference"):
...     y = model(x)
"""

import ctypes
import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

BACKENDS = ("cuda", "triton", "cpu", "reference")

# What runs when nobody chose. Triton on CPU tensors is its interpreter: right, and slow, so only on request.
_PREFERENCE = {"cuda": ("cuda", "triton", "reference"), "cpu": ("cpu", "reference")}

# CUDA kernels that no GPU has run yet (docs/FACTS.md, "Waiting for hardware"): usable by name, never picked.
UNVERIFIED_CUDA = frozenset(
    {
        "ep_combine",
        "ep_dispatch",
        "fp8_gemm",
        "grouped_fp8_gemm",
        "grouped_fp8_gemm_masked",
        "mla_decode",
        "mla_schedule",
        "mla_sparse",
        "per_token_group_quant_fp8",
        "silu_and_mul_quant_fp8",
    }
)

_PACKAGE = Path(__file__).parent

# The backend of the use_backend whose op is running: for the ops that this one is made of.
_in_use: ContextVar[str | None] = ContextVar("_in_use", default=None)


@dataclass(frozen=True)
class Library:
    """One compiled library of torch ops. `error` says why it is not loaded."""

    name: str
    path: Path
    handle: ctypes.CDLL | None
    error: str | None


@cache
def library(name: str) -> Library:
    """Load libmoela_<name>.so once. Never raises: what is missing is reported by `why_not`."""
    path = _PACKAGE / f"libmoela_{name}.so"
    if not path.exists():
        return Library(name, path, None, f"{path.name} was not built")
    try:
        torch.ops.load_library(path)
        return Library(name, path, ctypes.CDLL(str(path)), None)
    except OSError as error:
        cause = error.__cause__ or error  # torch hides the linker's message in the cause
        return Library(name, path, None, f"{path.name} does not load: {cause}")


def forced() -> str | None:
    """The backend that MOELA_BACKEND asks for, or the use_backend that an op runs under; or None."""
    if _in_use.get():
        return _in_use.get()
    name = os.environ.get("MOELA_BACKEND", "")
    if name in ("", "auto"):
        return None
    _check_name(name, "MOELA_BACKEND")
    return name


def _check_name(name: str, who: str) -> None:
    if name not in BACKENDS:
        raise ValueError(f"{who}: expected one of {', '.join(BACKENDS)}, got {name!r}")


@cache
def _compiled(backend: str, op: str) -> bool:
    """Whether the library of `backend` brings a kernel for `op`."""
    name, key = {"cpu": (f"moela::{op}", "CPU"), "cuda": (f"moela_cuda::{op}_out", "CUDA")}[backend]
    return library(backend).handle is not None and torch._C._dispatch_has_kernel_for_dispatch_key(name, key)


@cache
def _triton_error() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; pip install triton"
    try:
        importlib.import_module("triton")
    except Exception as error:
        return f"import triton fails: {error}"
    return None


@cache
def _has_triton_kernel(op: str) -> bool:
    try:
        return importlib.util.find_spec(f"moela.kernels.{op}") is not None
    except ModuleNotFoundError:  # a source tree on sys.path, without the folders that installation maps in
        return False


def interpreted() -> bool:
    """Whether Triton kernels run in its interpreter, on CPU tensors too."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


@cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def why_not(backend: str, op: str, device: torch.device | str) -> str | None:
    """None if `backend` can run `op` on `device`, else the reason and what would change it."""
    _check_name(backend, "backend")
    device = torch.device(device)
    if backend == "reference":
        return None
    if backend == "triton":
        return _why_not_triton(op, device)
    if device.type != backend:
        return f"runs on {backend} tensors only"
    if library(backend).error:
        todo = (
            "; build with nvcc in reach: MOELA_CUDA=ON pip install ."
            if backend == "cuda"
            else "; pip install ."
        )
        return str(library(backend).error) + todo
    if not _compiled(backend, op):
        return f"has no {op} kernel"
    if backend == "cpu" and forced() not in (None, "cpu"):
        return f"switched off by MOELA_BACKEND={forced()}"
    if backend == "cuda":
        major, minor = _capability(device.index or 0)
        if (major, minor) != (9, 0):
            return f"is built for sm_90a (Hopper), this device is sm_{major}{minor}"
    return None


def _why_not_triton(op: str, device: torch.device) -> str | None:
    if _triton_error():
        return _triton_error()
    if not _has_triton_kernel(op):
        return f"has no {op} kernel"
    if device.type == "cpu":
        return (
            None if interpreted() else "runs on CPU tensors in its interpreter only; set TRITON_INTERPRET=1"
        )
    if device.type != "cuda":
        return f"does not run on {device.type} tensors here"
    if torch.version.hip is None and _capability(device.index or 0) < (8, 0):
        return "needs sm_80 or later"
    return None


def available(op: str, device: torch.device | str) -> list[str]:
    """The backends that can run `op` on `device`, the preferred first."""
    preferred = _PREFERENCE.get(torch.device(device).type, ("reference",))
    if op in UNVERIFIED_CUDA:
        preferred = tuple(b for b in preferred if b != "cuda")
    ordered = [*preferred, *(b for b in BACKENDS if b not in preferred)]
    return [b for b in ordered if why_not(b, op, device) is None]


def pick(op: str, device: torch.device) -> str:
    """The backend that runs `op` on `device` when no `use_backend` is in force."""
    name = forced()
    if name is None:
        return available(op, device)[0]
    _require(name, op, device)
    return name


def _require(name: str, op: str, device: torch.device) -> None:
    reason = why_not(name, op, device)
    if reason:
        raise ValueError(f"{op}: backend {name!r} cannot run on {device}: {reason}")


def explain(op: str, device: torch.device | str) -> str:
    """One line per backend: picked, usable, or why not."""
    chosen = forced() or available(op, device)[0]
    lines = []
    for backend in BACKENDS:
        reason = why_not(backend, op, device)
        state = reason or ("picked" if backend == chosen else "usable")
        if state == "usable" and backend == "cuda" and op in UNVERIFIED_CUDA:
            state = "usable by name: no GPU has run it yet"
        lines.append(f"{op} on {device}: {backend:<9} {state}")
    return "\n".join(lines)


def launcher(backend: str, op: str) -> Callable[..., None]:
    """The callable that writes the result of `op` into its keyword `out`, a tuple of tensors."""
    assert backend in ("triton", "cuda"), f"{backend} registers its kernels with the dispatcher itself"
    if backend == "triton":
        return importlib.import_module(f"moela.kernels.{op}").launch
    return functools.partial(_launch_cuda, getattr(torch.ops.moela_cuda, op + "_out").default)


def _launch_cuda(op: torch._ops.OpOverload, *args, out: tuple[torch.Tensor, ...], **kwargs) -> None:
    outputs = [a.name for a in op._schema.arguments if a.is_write]
    accepted = {a.name for a in op._schema.arguments}
    op(*args, **{k: v for k, v in kwargs.items() if k in accepted}, **dict(zip(outputs, out, strict=True)))


def overrides_compiled_cpu(op: str) -> bool:
    """Whether MOELA_BACKEND asks for something else than the compiled CPU kernel that there is.

    A name that is none counts: importing moela must not fail, so that the op and `moela info` can say it.
    """
    return _compiled("cpu", op) and os.environ.get("MOELA_BACKEND", "") not in ("", "auto", "cpu")


class use_backend(TorchDispatchMode):  # noqa: N801  (a context manager, named as it is read)
    """Run every moela op inside the `with` on one backend, and raise where that backend cannot.

    For comparing and for finding faults: while it is active every torch op takes a detour of some
    microseconds through Python, and torch.compile does not trace. To choose for a whole process, set
    MOELA_BACKEND.
    """

    def __init__(self, name: str):
        _check_name(name, "use_backend")
        super().__init__()
        self.name = name

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace != "moela":
            return func(*args, **kwargs)
        from moela.ops import _spec

        name = func._schema.name.removeprefix("moela::")
        is_out = name.endswith("_out")
        op = name.removesuffix("_out")
        _require(self.name, op, args[0].device)
        if self.name == "cpu":
            return func(*args, **kwargs)
        run = _spec.run_python_out if is_out else _spec.run_python
        before = _in_use.set(self.name)
        try:
            return run(_spec.SPECS[op], self.name, args, dict(kwargs))
        finally:
            _in_use.reset(before)


def named() -> str | None:
    """The backend of the innermost `use_backend` around the caller, else that of MOELA_BACKEND, or None."""
    modes = reversed(_get_current_dispatch_mode_stack())
    return next((mode.name for mode in modes if isinstance(mode, use_backend)), forced())
