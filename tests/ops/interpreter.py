"""Triton's interpreter in two thirds of its time, for the tests.

Before every call of a jitted function it looks through all members of triton.language for those that it
replaces. Which these are does not change, so it is found out once.
"""

import inspect
from functools import cache
from typing import Any


@cache
def hasten() -> None:
    """Call it before the first launch. It leaves an interpreter that it does not know as it is."""
    from triton.runtime import interpreter

    if not hasattr(interpreter, "_patch_builtin") or not hasattr(interpreter, "_patch_attr"):
        return

    @cache
    def builtins_of(namespace: Any) -> list[tuple[str, Any]]:
        members = inspect.getmembers(namespace)
        return [(name, member) for name, member in members if interpreter.tl.core.is_builtin(member)]

    def patch_builtin(namespace: Any, *rest: Any) -> None:
        for name, member in builtins_of(namespace):
            if getattr(namespace, name) is member:
                interpreter._patch_attr(namespace, name, member, *rest)

    interpreter._patch_builtin = patch_builtin
