"""Put moela's functions into a model's layers, and take them out again."""

from typing import Any

from torch import nn

from moela import backends
from moela.integrations.transformers.layers import Layer, find, is_ours
from moela.integrations.transformers.report import ALREADY, LEFT, PATCHED, Entry, PatchReport
from moela.integrations.transformers.takeover import Takeover, put, record_of, restore


def patch(model: nn.Module, kinds: list[str], backend: str | None) -> PatchReport:
    _check(model, kinds, backend)
    layers = [layer for layer in find(model) if layer.kind in kinds]
    entries = [_entry(layer, backend) for layer in layers]
    if all(e.state == LEFT for e in entries):
        raise ValueError(_nothing(model, entries))
    changed = []
    try:
        for layer, entry in zip(layers, entries, strict=True):
            if entry.state == PATCHED:
                changed.append(layer.takeover.owner)
                put(layer.takeover, entry.detail, backend)
    except BaseException:
        for module in changed:
            restore(module)
        raise
    report = PatchReport(tuple(entries))
    print(report)  # noqa: T201
    return report


def unpatch(model: nn.Module) -> None:
    _check_module("unpatch", model)
    patched = [m for m in model.modules() if record_of(m)]
    if not patched:
        raise ValueError(
            f"moela.unpatch: model: expected a patched one, got a {type(model).__name__} as it was"
        )
    for module in patched:
        restore(module)


def _entry(layer: Layer, backend: str | None) -> Entry:
    def entry(state: str, detail: str) -> Entry:
        return Entry(layer.name, layer.kind, type(layer.module).__name__, state, detail)

    if isinstance(layer.takeover, str):
        return entry(LEFT, layer.takeover)
    if record := record_of(layer.takeover.owner):
        if backend not in (None, record.backend):
            raise ValueError(
                f"moela.patch: backend: expected {record.backend} as {layer.name} has it, got {backend!r}; "
                "moela.unpatch(model) first"
            )
        return entry(ALREADY, record.detail)
    if is_ours(layer.module) and backend is None:
        return entry(ALREADY, _detail(layer.takeover, None))
    return entry(PATCHED, _detail(layer.takeover, backend))


def _detail(takeover: Takeover, backend: str | None) -> str:
    """<op> on <backend>. Raises where an op cannot run on that backend."""
    device = takeover.device
    for op in takeover.ops:
        if backend and (reason := backends.why_not(backend, op, device)):
            wanted = f"one that runs {op} on {device}"
            raise ValueError(f"moela.patch: backend: expected {wanted}, got {backend!r}, which {reason}")
    return f"{takeover.ops[0]} on {backend or backends.pick(takeover.ops[0], device)}"


def _check(model: Any, kinds: list[str], backend: str | None) -> None:
    _check_module("patch", model)
    if not kinds:
        raise ValueError("moela.patch: expected one of experts, router, linear and mla to be True, got none")
    if backend is not None and backend not in backends.BACKENDS:
        names = ", ".join(backends.BACKENDS)
        raise ValueError(f"moela.patch: backend: expected None or one of {names}, got {backend!r}")


def _check_module(caller: str, model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise ValueError(f"moela.{caller}: model: expected a torch.nn.Module, got {type(model).__name__}")


def _nothing(model: nn.Module, entries: list[Entry]) -> str:
    reasons = sorted({f"{e.layer}: {e.detail}" for e in entries})
    wanted = "layers that moela can run"
    return f"moela.patch: model: expected {wanted}, got {'; '.join([type(model).__name__, *reasons])}"
