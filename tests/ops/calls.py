"""How a test calls an op, whether it returns its results or changes an argument in place."""

from collections.abc import Callable
from typing import Any

from moela.ops import OpSpec
from torch import Tensor


def as_tuple(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def results(spec: OpSpec, function: Callable, inputs: dict[str, Any]) -> tuple[Tensor, ...]:
    """What `function`, a form of the op, gives; of one that works in place: what it makes of copies."""
    if not spec.in_place:
        return as_tuple(function(**inputs))
    copies = {name: copied(inputs[name]) for name in spec.outputs}
    assert function(**(inputs | copies)) is None
    return tuple(copies.values())


def copied(t: Tensor) -> Tensor:
    """With the strides and the surroundings of t, which is a view or all of its storage."""
    base = t if t._base is None else t._base
    return base.clone().as_strided(t.size(), t.stride(), t.storage_offset())
