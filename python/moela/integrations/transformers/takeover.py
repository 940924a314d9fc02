"""A method of a layer replaced by one of moela, and put back."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from moela import backends

RECORD = "_moela_patch"  # in the __dict__ of a module that has a method of ours


@dataclass(frozen=True)
class Takeover:
    """How moela takes a layer over: `function` becomes the method `attribute` of `owner`.

    ops: what it calls, the one that does the work first. device: where.
    note: what the function has to know of the layer; it finds it in the module's record.
    """

    owner: nn.Module
    attribute: str
    function: Callable[..., Any]
    ops: tuple[str, ...]
    device: torch.device
    note: Any = None


@dataclass(frozen=True)
class Record:
    """What a taken-over module was before, and what it does now; in the module, so that a copy has its own.

    had: whether the instance itself had the attribute, `before`; else it had it from its class.
    """

    attribute: str
    had: bool
    before: Any
    detail: str
    backend: str | None
    note: Any


def record_of(module: nn.Module) -> Record | None:
    return vars(module).get(RECORD)


def forward_slot(module: nn.Module) -> str:
    """The attribute that is called with a layer's arguments.

    accelerate, which moves them between devices, puts a forward of its own in front and calls what it found
    there as `_old_forward`.
    """
    is_hooked = "_hf_hook" in vars(module) and "_old_forward" in vars(module)
    return "_old_forward" if is_hooked else "forward"


def is_watched(module: nn.Module) -> bool:
    """Whether somebody wants to see the calls of a module, or those of all: it has to be called then."""
    return bool(module._forward_hooks or module._forward_pre_hooks or _has_any_global_hook())


def why_not(owner: nn.Module, attribute: str) -> str | None:
    """None if `owner` has the method from its class: what another one does we cannot know."""
    method = vars(owner).get(attribute)
    theirs = getattr(type(owner), attribute.replace("_old_forward", "forward"))
    is_known = method is None or getattr(method, "__func__", None) is theirs or record_of(owner)
    return None if is_known else f"this instance has a {attribute} of its own"


def put(takeover: Takeover, detail: str, backend: str | None) -> None:
    own, attribute = vars(takeover.owner), takeover.attribute
    method = _on_backend(takeover.function, backend, takeover.owner)
    own[RECORD] = Record(attribute, attribute in own, own.get(attribute), detail, backend, takeover.note)
    own[attribute] = method


def restore(module: nn.Module) -> None:
    """Undo `put`, if it got as far as its record."""
    own = vars(module)
    record = own.pop(RECORD, None)
    if record and record.had:
        own[record.attribute] = record.before
    elif record:
        own.pop(record.attribute, None)


def _on_backend(function: Callable[..., Any], backend: str | None, owner: nn.Module) -> Callable[..., Any]:
    """The method: a partial, which is pickled as it is; of bound methods the name is, which no class has."""
    if backend is None:
        return functools.partial(function, owner)
    return functools.partial(_run, function, backend, owner)


def _run(function: Callable[..., Any], backend: str, owner: nn.Module, *args: Any, **kwargs: Any) -> Any:
    with backends.use_backend(backend):
        return function(owner, *args, **kwargs)
