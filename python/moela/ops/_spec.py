"""OpSpec, the one record per op: the dispatcher, the contract tests, the bench and the docs all read it."""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moela import backends
from moela.ops import _check

Tensors = tuple[Tensor, ...]

_lib = torch.library.Library("moela", "DEF")
# Compiled CUDA kernels register here, as out variants, and are called by run_python: which backend runs on a
# CUDA tensor depends on its device, so that choice stays in one place (docs/adr/0001).
_cuda_lib = torch.library.Library("moela_cuda", "DEF")


@dataclass(frozen=True)
class Autograd:
    """The derivative of an op with respect to what is not keyword-only; made of ops, so it compiles."""

    setup_context: Callable[..., None]  # (ctx, inputs, keyword_only_inputs, output)
    backward: Callable[..., Tensors]  # (ctx, *grads) -> one gradient or None per input


@dataclass(frozen=True)
class OpSpec:
    """One op. `args` below are the op's own arguments, in its own order and with its own names."""

    name: str
    # Arguments in torch schema notation, without the enclosing parentheses.
    schema: str
    outputs: tuple[str, ...]
    # The argument that chooses the output dtype; the _out variant takes it from the tensor that it is given.
    dtype_arg: str | None
    check: Callable[..., None]  # (*args): raises ValueError; also runs on fake tensors
    empty: Callable[..., Tensors]  # (*args) -> uninitialised outputs; is the fake kernel too
    reference: Callable[..., Tensor | Tensors]  # (*args): the definition
    public: Callable[..., Any]  # the documented function
    make_inputs: Callable[..., dict[str, Any]]  # (**dims, seed, device) -> args by name
    # (args by name, accum) -> [(exact float64, allowed error float64)] per output; accum as in moela.testing
    bound: Callable[..., list[tuple[Tensor, Tensor]]]
    cases: tuple[dict[str, Any], ...]  # keyword arguments of make_inputs that the contract tests run
    flops: Callable[..., int]  # (**dims) of the algorithm
    bytes: Callable[..., int]  # (**dims) of the algorithm: every input read once, every output written once
    cuda_limits: Callable[..., str | None] | None = None  # (*args): what the CUDA kernel does not take
    # The outputs are arguments that the op changes in place, (a!) in the schema: it returns nothing, has no
    # _out variant, and `empty` gives these arguments.
    in_place: bool = False
    strided_out: bool = False  # whether the rows of an _out variant's outputs may be strided
    # Batch invariance: the arguments whose first dimension is the batch, values first. Row i of the outputs
    # depends on row i of these only.
    batch_args: tuple[str, ...] = ()
    # (*args) -> which rows of the output, a batch of matrices [..., rows, N], the op computes: of matrix i
    # those from begin[i] (begin None: 0) up to end[i], int32; None: all. The rest is zero in a returned
    # tensor, and an _out variant leaves it as it is. Such an op has one output.
    written: Callable[..., tuple[Tensor | None, Tensor]] | None = None
    autograd: "Autograd | None" = None
    # Of an op without a derivative: what to do instead, where there is something.
    to_train: str | None = None

    @property
    def op(self) -> torch._ops.OpOverload:
        return getattr(torch.ops.moela, self.name).default

    @property
    def out_op(self) -> torch._ops.OpOverload:
        """The one that writes to tensors of the caller: of an op that works in place the op itself."""
        return self.op if self.in_place else getattr(torch.ops.moela, self.name + "_out").default


SPECS: dict[str, OpSpec] = {}

# Unit roundoff, and half the distance between a type's smallest numbers: what one rounding to nearest may
# lose.
_ROUNDING = {
    torch.bfloat16: (2.0**-8, 2.0**-134),
    torch.float16: (2.0**-11, 2.0**-25),
    torch.float32: (2.0**-24, 2.0**-150),
}


def rounding(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """What rounding each element of `exact` (float64) to `dtype` may change it by."""
    relative, absolute = _ROUNDING[dtype]
    return relative * exact.abs() + absolute


def exactly(reference: Callable[..., Tensor | Tensors]) -> Callable[..., list[tuple[Tensor, Tensor]]]:
    """The bound of an op that is defined bit by bit: the definition's values, and no error."""

    def bound(inputs: dict[str, Any], accum: float) -> list[tuple[Tensor, Tensor]]:
        result = reference(**inputs)
        values = [r.double() for r in (result if isinstance(result, tuple) else (result,))]
        return [(v, torch.zeros_like(v)) for v in values]

    return bound


def _returns(outputs: Tensors) -> Tensor | Tensors:
    return outputs[0] if len(outputs) == 1 else outputs


def _out_schema(spec: OpSpec) -> str:
    """The schema of `<op>_out`: same arguments less the dtype, then the outputs as keywords."""
    args = [arg for arg in spec.schema.split(", ") if arg.split("=")[0].split(" ")[-1] != spec.dtype_arg]
    if args[-1] == "*":
        args.pop()
    if "*" not in args:
        args.append("*")
    args += [f"Tensor({alias}!) {out}" for alias, out in zip("xyz", spec.outputs, strict=False)]
    return ", ".join(args)


def run_python(spec: OpSpec, backend: str, args: tuple, kwargs: dict) -> Tensor | Tensors | None:
    """Check, allocate and compute with a backend that the dispatcher does not know of."""
    spec.check(*args, **kwargs)
    require_cuda_limits(spec, backend, args, kwargs)
    if backend == "reference":
        return spec.reference(*args, **kwargs)
    if spec.in_place:
        return backends.launcher(backend, spec.name)(*args, **kwargs)
    out = spec.empty(*args, **kwargs)
    backends.launcher(backend, spec.name)(*args, **kwargs, out=out)
    if spec.written:
        _clear_rest(spec, out[0], *spec.written(*args, **kwargs))
    return _returns(out)


def run_python_out(spec: OpSpec, backend: str, args: tuple, kwargs: dict) -> None:
    """The same into tensors that the caller owns."""
    out = tuple(kwargs.pop(name) for name in spec.outputs)
    if spec.dtype_arg:
        kwargs[spec.dtype_arg] = out[0].dtype
    spec.check(*args, **kwargs)
    check_out(
        spec, out, spec.empty(*(_meta(a) for a in args), **{k: _meta(v) for k, v in kwargs.items()}), args[0]
    )
    require_cuda_limits(spec, backend, args, kwargs)
    if backend == "reference":
        result = spec.reference(*args, **kwargs)
        theirs = result if isinstance(result, tuple) else (result,)
        if spec.written:
            mask = written_rows(out[0], *spec.written(*args, **kwargs))
            theirs = (torch.where(mask, theirs[0], out[0]),)
        for o, t in zip(out, theirs, strict=True):
            o.copy_(t)
    else:
        backends.launcher(backend, spec.name)(*args, **kwargs, out=out)


def written_rows(t: Tensor, begin: Tensor | None, end: Tensor) -> Tensor:
    """[..., rows, 1] bool: which rows of t OpSpec.written means."""
    row = torch.arange(t.size(-2), device=t.device)
    mask = row < end[:, None]  # [matrices, rows]
    if begin is not None:
        mask &= row >= begin[:, None]
    return mask.view(*t.shape[:-1], 1)


def _clear_rest(spec: OpSpec, t: Tensor, begin: Tensor | None, end: Tensor) -> None:
    if backends.why_not("triton", spec.name, t.device) is None:
        from moela.kernels._rest import clear_rest

        clear_rest(t, begin, end)
    else:
        t.masked_fill_(~written_rows(t, begin, end), 0)


def require_cuda_limits(spec: OpSpec, backend: str, args: tuple, kwargs: dict) -> None:
    reason = spec.cuda_limits(*args, **kwargs) if backend == "cuda" and spec.cuda_limits else None
    if reason:
        raise ValueError(f"{spec.name}: backend 'cuda' cannot run these arguments: {reason}")


def pick_for(spec: OpSpec, args: tuple, kwargs: dict) -> str:
    """The backend for one call: what CUDA would be picked for and does not take goes to the next one."""
    backend = backends.pick(spec.name, args[0].device)
    limits = spec.cuda_limits
    if backend == "cuda" and limits and backends.forced() is None and limits(*args, **kwargs):
        return next(b for b in backends.available(spec.name, args[0].device) if b != "cuda")
    return backend


def _meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value


def check_out(spec: OpSpec, out: Tensors, wanted: Tensors, first: Tensor) -> None:
    op = spec.name + "_out"
    for name, mine, want in zip(spec.outputs, out, wanted, strict=True):
        _check.expect_dtype(op, name, mine.dtype, (want.dtype,))
        _check.expect_shape(op, name, mine, want.shape)
        _check.expect_device(op, name, mine, first.device, "the inputs")
        if spec.strided_out:
            _check.expect_last_dim_contiguous(op, name, mine)
        else:
            _check.expect_contiguous(op, name, mine)


def register(spec: OpSpec) -> None:
    """Define `moela::<name>` and `moela::<name>_out` and give them every backend that is not compiled.

    Compiled kernels are registered by their library under a device key and win over what is registered here.
    """

    def run(*args, **kwargs):
        return run_python(spec, pick_for(spec, args, kwargs), args, kwargs)

    def out_variant(*args, **kwargs):
        inputs = {k: v for k, v in kwargs.items() if k not in spec.outputs}
        run_python_out(spec, pick_for(spec, args, inputs), args, kwargs)

    def fake(*args, **kwargs):
        spec.check(*args, **kwargs)
        return None if spec.in_place else _returns(spec.empty(*args, **kwargs))

    def fake_out(*args, **kwargs):
        out = tuple(kwargs.pop(name) for name in spec.outputs)
        if spec.dtype_arg:
            kwargs[spec.dtype_arg] = out[0].dtype
        spec.check(*args, **kwargs)
        check_out(spec, out, spec.empty(*args, **kwargs), args[0])

    if spec.in_place:
        _define(spec.name, f"({spec.schema}) -> ()", run, fake)
    else:
        returns = ", ".join(["Tensor"] * len(spec.outputs))
        returns = returns if len(spec.outputs) == 1 else f"({returns})"
        _define(spec.name, f"({spec.schema}) -> {returns}", run, fake)
        _define(spec.name + "_out", f"({_out_schema(spec)}) -> ()", out_variant, fake_out)
        _cuda_lib.define(f"{spec.name}_out({_out_schema(spec)}) -> ()")
    derivative = _with_derivative if spec.autograd else _without_derivative
    _lib.impl(spec.name, derivative(spec), "Autograd")
    SPECS[spec.name] = spec


def _define(name: str, schema: str, kernel: Callable, fake: Callable) -> None:
    """`kernel` runs on devices without a compiled one, and on the CPU where MOELA_BACKEND asks for it."""
    _lib.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    _lib.impl(name, kernel, "CompositeExplicitAutograd")
    if backends.overrides_compiled_cpu(name.removesuffix("_out")):
        with warnings.catch_warnings():  # torch warns of every override; this one was asked for
            warnings.simplefilter("ignore")
            _lib.impl(name, kernel, "CPU", allow_override=True)
    torch.library.register_fake(f"moela::{name}", fake, lib=_lib)


def _is_recorded(args: tuple, kwargs: dict) -> bool:
    return torch.is_grad_enabled() and torch._C._any_requires_grad(*args, **kwargs)


def _tracked(values: Iterable[Any]) -> list[Tensor]:
    return [t for t in values if isinstance(t, Tensor) and t.requires_grad]


def _with_derivative(spec: OpSpec) -> Callable[..., Tensor | Tensors]:
    """The kernel for autograd. torch.library.register_autograd takes no keyword-only tensors."""

    class Derivative(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs: Any) -> Tensor | Tensors:
            """inputs: args, kwargs, and what of these wants a gradient, for backward to be asked."""
            ctx.num_args = next(i for i, value in enumerate(inputs) if isinstance(value, dict))
            args, kwargs = inputs[: ctx.num_args], inputs[ctx.num_args]
            with torch._C._AutoDispatchBelowAutograd():
                result = spec.op(*args, **kwargs)
            spec.autograd.setup_context(ctx, *_with_defaults(spec.op, args, kwargs), result)
            return result

        @staticmethod
        def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:
            of_args = spec.autograd.backward(ctx, *grads)[: ctx.num_args]
            return *of_args, *[None] * (len(ctx.needs_input_grad) - ctx.num_args)

    def call(*args, **kwargs):
        if _is_recorded(args, kwargs):
            return Derivative.apply(*args, kwargs, *_tracked(kwargs.values()))
        with torch._C._AutoDispatchBelowAutograd():
            return spec.op(*args, **kwargs)

    return call


def _with_defaults(op: torch._ops.OpOverload, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """The dispatcher leaves out arguments that have their default's value."""
    named = {a.name: a.default_value for a in op._schema.arguments if a.kwarg_only}
    rest = [a.default_value for a in op._schema.arguments[len(args) :] if not a.kwarg_only]
    return (*args, *rest), named | kwargs


class NoDerivative(torch.autograd.Function):
    """The result of an op, which cannot be differentiated: backward says so."""

    @staticmethod
    def forward(ctx, message: str, result: Tensor, *inputs: Tensor) -> Tensor:
        ctx.message = message
        return result.detach()

    @staticmethod
    def backward(ctx, grad: Tensor) -> None:
        raise NotImplementedError(ctx.message)


def _without_derivative(spec: OpSpec) -> Callable[..., Tensor | Tensors]:
    """The kernel for autograd of an op without a derivative. torch's warns and leaves out the gradient."""
    message = f"{spec.name}: has no derivative" + (f"; {spec.to_train}" if spec.to_train else "")

    def call(*args, **kwargs):
        is_recorded = _is_recorded(args, kwargs)
        if is_recorded and spec.in_place:  # there is no result that could say so in backward
            raise NotImplementedError(message)
        with torch._C._AutoDispatchBelowAutograd():
            result = spec.op(*args, **kwargs)
        if not is_recorded:
            return result
        tracked = _tracked((*args, *kwargs.values()))
        if isinstance(result, Tensor):
            return NoDerivative.apply(message, result, *tracked)
        return tuple(NoDerivative.apply(message, r, *tracked) for r in result)

    return call
