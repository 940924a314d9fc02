"""Triton's interpreter in a third of its time, for the tests.

What it computes stays. What it does again and again is done once: it looks through triton.language for what
it replaces at every call of a jitted function, builds a table of types for every array, and a type and its
extents for every value. And it adds in 64 bits what no one looks at.
"""

import inspect
import math
from dataclasses import replace
from functools import cache
from typing import Any


@cache
def hasten() -> None:
    """Call it before the first launch. It leaves an interpreter that it does not know as it is."""
    from triton.runtime import interpreter

    if hasattr(interpreter, "_patch_builtin") and hasattr(interpreter, "_patch_attr"):
        _find_builtins_once(interpreter)
    if hasattr(interpreter, "_LangPatchScope"):
        _replace_once_a_launch(interpreter)
    if hasattr(interpreter, "_get_np_dtype"):
        _make_types_once(interpreter)
    _leave_out_sums_of_64_bits(interpreter.interpreter_builder)


def _find_builtins_once(interpreter: Any) -> None:
    @cache
    def builtins_of(namespace: Any) -> list[tuple[str, Any]]:
        members = inspect.getmembers(namespace)
        return [(name, member) for name, member in members if interpreter.tl.core.is_builtin(member)]

    def patch_builtin(namespace: Any, *rest: Any) -> None:
        for name, member in builtins_of(namespace):
            if getattr(namespace, name) is member:
                interpreter._patch_attr(namespace, name, member, *rest)

    interpreter._patch_builtin = patch_builtin


def _replace_once_a_launch(interpreter: Any) -> None:
    """What the device functions of a module see of triton.language, at the first call of one of them."""
    launch, replaced = interpreter.GridExecutor.__call__, set()

    def launch_with_none_replaced(self: Any, *args: Any, **kwargs: Any) -> None:
        replaced.clear()
        launch(self, *args, **kwargs)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if id(self.fn.__globals__) not in replaced:
            interpreter._patch_lang(self.fn)
            replaced.add(id(self.fn.__globals__))
        return self.rewrite()(*args, **kwargs)

    interpreter.GridExecutor.__call__ = launch_with_none_replaced
    interpreter.InterpretedFunction.__call__ = call


def _make_types_once(interpreter: Any) -> None:
    tl = interpreter.tl
    np_dtype, init_block_type = interpreter._get_np_dtype, tl.block_type.__init__

    @cache
    def np_dtype_of(scalar: Any) -> Any:
        return np_dtype(scalar)

    def get_np_dtype(tt_dtype: Any) -> Any:
        scalar = tt_dtype.scalar
        return np_dtype(scalar) if scalar.is_ptr() else np_dtype_of(scalar)  # a pointer type has no hash

    @cache
    def of_block(scalar: Any, *shape: int) -> dict[str, Any]:
        block_type = object.__new__(tl.block_type)
        init_block_type(block_type, scalar, list(shape))
        return vars(block_type)

    def init_block(self: Any, element_ty: Any, shape: Any) -> None:
        if element_ty.is_ptr() or not all(type(extent) is int for extent in shape):
            init_block_type(self, element_ty, shape)
        else:
            vars(self).update(of_block(element_ty, *shape))

    @cache
    def extents(*shape: int) -> tuple[Any, Any]:
        return tl.constexpr(math.prod(shape)), tl.tuple([tl.constexpr(extent) for extent in shape])

    def init_tensor(self: Any, handle: Any, type: Any) -> None:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.numel, self.shape = extents(*type.shape) if type.is_block() else extents()

    interpreter._get_np_dtype = get_np_dtype
    tl.block_type.__init__ = init_block
    tl.tensor.__init__ = init_tensor


def _leave_out_sums_of_64_bits(builder: Any) -> None:
    """Which it compares with the range of the type for an assertion that only `debug` makes."""
    if not builder.options.debug:
        builder.options = replace(builder.options, sanitize_overflow=False)
