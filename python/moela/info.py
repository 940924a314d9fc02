"""What is built, what is usable and why not: `moela info`, and the first thing to put into a bug report."""

import ctypes
import importlib.metadata
import os
import platform
from pathlib import Path

import torch

import moela
from moela import backends
from moela.ep.transports import faults_here
from moela.ops import SPECS

ENVIRONMENT = ("MOELA_BACKEND", "MOELA_CPU_ISA", "MOELA_DEBUG", "TRITON_INTERPRET")
_HOW_TO_BUILD = {
    "cpu": "to build it: pip install .",
    "cuda": "to build it: MOELA_CUDA=ON pip install .",
    "ep": "to build it, on Linux: pip install .",
}
_ISA_STATES = {
    "picked": "picked",
    "usable": "usable",
    "unusable": "this machine does not have it",
    "not-compiled": "not compiled into this library",
}


def version_of(package: str) -> str | None:
    """The version installed, without importing the package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    """The processor in the words of its maker, or else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def cpu_isas() -> list[tuple[str, str, bool]]:
    """(name, picked | usable | unusable | not-compiled, whether it is verified) per instruction set.

    Verified: the test-suite has run on a machine that has it. Empty if the library is not built.
    """
    handle = backends.library("cpu").handle
    if handle is None:
        return []
    handle.moela_cpu_isas.restype = ctypes.c_char_p
    rows = (line.split() for line in handle.moela_cpu_isas().decode().splitlines())
    return [(name, state, note == "verified") for name, state, note in rows]


def picked_isa() -> str | None:
    return next((name for name, state, _ in cpu_isas() if state == "picked"), None)


def devices() -> list[str]:
    return ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]


def environment_faults() -> list[str]:
    """What is wrong with environment variables that are set, one line each."""
    checked = ((name, os.environ[name]) for name in ENVIRONMENT if name in os.environ)
    return [f"{name}: {fault}, got {value!r}" for name, value in checked if (fault := _fault(name, value))]


def report() -> str:
    """Text for a person, without a line break at its end. Never raises: what is wrong is part of it."""
    sections = [
        ("moela", _versions()),
        ("libraries", [_library(name) for name in _HOW_TO_BUILD]),
        ("CPU instruction sets", _isas()),
        ("environment", _environment()),
        ("transports of expert parallelism", _transports()),
        *((f"ops on {device}", _ops(device)) for device in devices()),
    ]
    return "\n\n".join("\n".join([title, *(f"  {line}" for line in lines)]) for title, lines in sections)


def _versions() -> list[str]:
    gpus = [f"{torch.cuda.get_device_name(i)} (cuda:{i})" for i in range(torch.cuda.device_count())]
    return [
        f"moela    {moela.__version__}",
        f"python   {platform.python_version()}",
        f"torch    {torch.__version__}, {torch.get_num_threads()} threads",
        f"triton   {version_of('triton') or 'not installed'}",
        f"cpu      {cpu_model()}",
        f"gpu      {', '.join(gpus) or 'none that torch sees'}",
    ]


def _library(name: str) -> str:
    library = backends.library(name)
    return f"{name:<8} {library.path if library.error is None else f'{library.error}; {_HOW_TO_BUILD[name]}'}"


def _isas() -> list[str]:
    isas = cpu_isas()
    if not isas:
        return ["none: the CPU library is not loaded, so ops run on the reference"]
    unverified = "; unverified: the test-suite has not run on it yet"
    return [f"{name:<11} {_ISA_STATES[state]}{'' if ok else unverified}" for name, state, ok in isas]


def _environment() -> list[str]:
    lines = []
    for name in ENVIRONMENT:
        if name not in os.environ:
            continue
        fault = _fault(name, os.environ[name])
        lines.append(f"{name}={os.environ[name]}" + (f"  <- {fault}" if fault else ""))
    return lines or ["nothing set; what can be: " + ", ".join(ENVIRONMENT)]


def _transports() -> list[str]:
    """What EpBuffer takes for processes, in its order; the ranks of a group agree on one."""
    return [f"{name:<11} {fault or 'usable'}" for name, fault in faults_here().items()]


def _fault(name: str, value: str) -> str | None:
    """What is wrong with the value of an environment variable."""
    if name == "MOELA_BACKEND" and value not in ("", "auto", *backends.BACKENDS):
        return f"expected one of {', '.join(backends.BACKENDS)}"
    if name == "MOELA_CPU_ISA" and value:
        runs = [isa for isa, state, _ in cpu_isas() if state in ("picked", "usable")]
        if runs and value not in runs:
            return f"expected one that this machine runs: {', '.join(runs)}"
    return None


def _ops(device: str) -> list[str]:
    lines = []
    for op in SPECS:
        lines.append(op)
        try:
            rows = backends.explain(op, device).splitlines()
        except ValueError as error:
            lines.append(f"  {error}")
            continue
        lines += ["  " + row.removeprefix(f"{op} on {device}: ") for row in rows]
    return lines
