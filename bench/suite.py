"""What the bench_<op> files declare, and how one case of them is checked and timed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from moela import backends, testing
from moela.bench import memory, report
from moela.bench.report import Case, Result, Wrong
from moela.bench.roofline import Probes
from moela.bench.routing import DEFAULT_EXPERTS, KINDS, Routed
from moela.bench.timer import Clock, Contestant, race
from moela.ops import SPECS
from moela.ops._spec import run_python
from moela.shapes import MODELS, ExpertShape, LinearShape, ModelShape, RouterShape
from torch import Tensor

Inputs = dict[str, Any]
Outputs = tuple[Tensor, ...]
Shape = LinearShape | ExpertShape | RouterShape
Layer = Shape | Routed
# (inputs, outputs -> outputs): a share of a case, small enough for its exact result in float64.
Part = tuple[Inputs, Callable[[Outputs], Outputs]]

_PART_ELEMENTS = 1 << 24  # of a weight; float64 copies of a whole one may not fit into memory


def nothing_missing(device: torch.device) -> str | None:
    """Why not: no reason."""
    return None


@dataclass(frozen=True)
class Baseline:
    """What users have without moela."""

    name: str
    what: str
    prepare: Callable[[Inputs], Callable[[], Tensor | Outputs]]  # raises where it cannot run these inputs
    tolerance: float  # of the relative error of the whole result: baselines may be lossy, but not wrong
    why_not: Callable[[torch.device], str | None] = nothing_missing


@dataclass(frozen=True)
class Bench:
    """One op: what it is measured on and against."""

    op: str
    dtypes: tuple[str, ...]  # of the activations, or of what is cast; the first is the default
    has_tokens: bool
    dims: Callable[[Any, int, str], dict[str, Any]]  # (Layer, tokens, dtype) -> those of make_inputs
    item_bytes: Callable[[str], dict[str, float]]  # dtype -> the arguments of OpSpec.bytes that depend on it
    parts: Callable[[Inputs], Iterator[Part]]
    baselines: tuple[Baseline, ...]
    layers: Callable[[ModelShape], Mapping[str, Shape]] = ModelShape.linear_layers
    has_routing: bool = False  # then `dims` gets a Routed instead of a shape
    has_batch: bool = False  # then make_inputs takes B, the number of requests
    warm_tokens: int | None = None  # at most, where the time of a warm-up grows with their square
    dtype_option: str = "activations"  # or "weights": the option of the command line that chooses dtypes

    def cases(
        self,
        model: str,
        layers: Sequence[str],
        tokens: Sequence[int],
        dtypes: Sequence[str],
        routings: Sequence[str] = KINDS[:1],
        num_experts: int = DEFAULT_EXPERTS,
        batches: Sequence[int] = (1,),
    ) -> list[Case]:
        """Every combination, layer by layer. The experts are at most those of the model."""
        kinds = [(kind, min(num_experts, MODELS[model].num_experts)) for kind in routings]
        return [
            self._case(Case(self.op, model, layer, dtype, M, 0, 0, *of_experts, batch=B))
            for layer in layers
            for dtype in dtypes
            for of_experts in (kinds if self.has_routing else [()])
            for B in (batches if self.has_batch else (1,))
            for M in (tokens if self.has_tokens else (0,))
        ]

    def layer(self, case: Case) -> Layer:
        model = MODELS[case.model]
        return self._routed(case, self.layers(model)[case.layer])

    def inputs(self, case: Case, device: torch.device) -> Inputs:
        return self._inputs(case, self.layer(case), device)

    def small_inputs(self, case: Case, device: torch.device) -> Inputs:
        """The same of one block: takes the same code, and next to no time."""
        shape = self.layers(MODELS[case.model])[case.layer]
        one_block = replace(shape, **{extent.name: 128 for extent in fields(shape)})
        if self.warm_tokens is not None:
            case = replace(case, tokens=min(case.tokens, self.warm_tokens))
        return self._inputs(case, self._routed(case, one_block), device)

    def _case(self, case: Case) -> Case:
        """The case with its costs."""
        dims, spec = self._dims(case, self.layer(case)), SPECS[self.op]
        num_bytes = spec.bytes(**dims, **self.item_bytes(case.dtype))
        return replace(case, flops=spec.flops(**dims), bytes=num_bytes)

    def _routed(self, case: Case, shape: Shape) -> Layer:
        if not self.has_routing:
            return shape
        return Routed(shape, case.num_experts, MODELS[case.model].topk, case.routing)

    def _inputs(self, case: Case, layer: Layer, device: torch.device) -> Inputs:
        return SPECS[self.op].make_inputs(**self._dims(case, layer), device=device)

    def _dims(self, case: Case, layer: Layer) -> dict[str, Any]:
        dims = self.dims(layer, case.tokens, case.dtype)
        return dims | {"B": case.batch} if self.has_batch else dims


def in_torch(op: str) -> tuple[Baseline, ...]:
    """The definition in plain torch, as it is and compiled. Compiled code may round a code differently."""

    def eager(inputs: Inputs) -> Callable[[], Tensor | Outputs]:
        return lambda: SPECS[op].reference(**inputs)

    def compiled(inputs: Inputs) -> Callable[[], Tensor | Outputs]:
        torch._dynamo.reset()  # each case is compiled for its own shape
        fast = torch.compile(SPECS[op].reference, dynamic=False)
        fast(**inputs)
        return lambda: fast(**inputs)

    return (
        Baseline("torch", "the definition in plain torch", eager, 1e-3),
        Baseline("torch-compile", "the definition under torch.compile", compiled, 1e-3),
    )


def row_parts(N: int, K: int) -> Iterator[tuple[slice, slice]]:
    """Rows of a weight, and those of its scale factors, a part at a time."""
    step = max(_PART_ELEMENTS // K // 128, 1) * 128
    for first in range(0, N, step):
        rows = slice(first, min(first + step, N))
        yield rows, slice(first // 128, -(-rows.stop // 128))


@dataclass(frozen=True)
class Entry:
    """A contestant that can run these inputs. tolerance None: it is judged per element, by the op's bound."""

    name: str
    call: Callable[[], Tensor | Outputs]
    tolerance: float | None = None
    warm: Callable[[], object] | None = None  # see Contestant

    @property
    def is_baseline(self) -> bool:
        return self.tolerance is not None


def backend_call(backend: str, op: str, inputs: Inputs) -> Callable[[], Tensor | Outputs]:
    """A backend of moela, called as the dispatcher does."""
    spec = SPECS[op]
    if spec.in_place:  # each contestant changes tensors of its own
        inputs = inputs | {name: inputs[name].clone() for name in spec.outputs}
    run = (lambda: spec.op(**inputs)) if backend == "cpu" else (lambda: run_python(spec, backend, (), inputs))
    if not spec.in_place:
        return run
    changed = tuple(inputs[name] for name in spec.outputs)
    return lambda: run() or changed


def why_not_timed(backend: str, op: str, device: torch.device) -> str | None:
    """Why a backend takes no part, or None."""
    if backend == "triton" and device.type == "cpu":
        return "runs on CPU tensors in its interpreter, which is never timed"
    return backends.why_not(backend, op, device)


def measure(
    bench: Bench,
    case: Case,
    inputs: Inputs,
    entries: Sequence[Entry],
    *,
    probes: Probes,
    clock: Clock,
    rounds: int,
    on_sample: Callable[[str], object] | None = None,
) -> tuple[list[Result], list[Wrong]]:
    """Check every entry, then time those that are right, beside the roofs and with cold caches."""
    device = next(t.device for t in inputs.values() if isinstance(t, Tensor))
    # The first call of each, as what a kernel keeps for later calls counts too.
    extra = {e.name: memory.Extra(e.call, e.warm, device) for e in entries}
    verdicts = check(bench, inputs, [replace(e, call=extra[e.name]) for e in entries])
    wrong = [Wrong(case, e.name, str(verdicts[e.name])) for e in entries if isinstance(verdicts[e.name], str)]
    right = [e for e in entries if not isinstance(verdicts[e.name], str)]
    if not right:
        return [], wrong
    contestants = [*(Contestant(e.name, e.call, e.warm) for e in right), *probes.contestants]
    # Without evicting, a weight that fits into the cache would stay there; in a model others displace it.
    timings = race(contestants, rounds=rounds, clock=clock, before=probes.evict, on_sample=on_sample)
    roofline = probes.roofline(timings)
    return [
        report.result(
            case,
            e.name,
            e.is_baseline,
            timings[e.name],
            verdicts[e.name],
            roofline,
            extra[e.name].bytes if bench.has_routing else None,
        )
        for e in right
    ], wrong


def check(bench: Bench, inputs: Inputs, entries: Sequence[Entry]) -> dict[str, float | str]:
    """By name: the relative error of the whole result, or what is wrong."""
    outputs: dict[str, Outputs] = {}
    verdicts: dict[str, float | str] = {}
    for entry in entries:
        try:
            result = entry.call()
            outputs[entry.name] = result if isinstance(result, tuple) else (result,)
        except Exception as error:
            verdicts[entry.name] = f"raises {type(error).__name__}: {_first_line(error)}"
    squares = {name: [[0.0, 0.0] for _ in SPECS[bench.op].outputs] for name in outputs}  # of error and exact
    for part_inputs, select in bench.parts(inputs):
        bounds = SPECS[bench.op].bound(part_inputs, _accum(part_inputs))
        for entry in entries:
            if entry.name in verdicts:
                continue
            try:
                got = select(outputs[entry.name])
                _add_squares(squares[entry.name], got, bounds)
                if not entry.is_baseline:
                    for output, t, (exact, error) in zip(SPECS[bench.op].outputs, got, bounds, strict=True):
                        testing.assert_within(t, exact, error, output)
            except (AssertionError, RuntimeError) as error:
                verdicts[entry.name] = _first_line(error)
    for entry in entries:
        if entry.name not in verdicts:
            verdicts[entry.name] = _verdict(squares[entry.name], entry.tolerance)
    return verdicts


def _verdict(squares: list[list[float]], tolerance: float | None) -> float | str:
    error = max((e / x) ** 0.5 if e else 0.0 for e, x in squares)
    if tolerance is not None and not error <= tolerance:
        return f"relative error of the result {error:.2g}, expected at most {tolerance:.2g}"
    return error


def _add_squares(squares: list[list[float]], got: Outputs, bounds: list[tuple[Tensor, Tensor]]) -> None:
    for total, t, (exact, _) in zip(squares, got, bounds, strict=True):
        assert t.shape == exact.shape, f"expected shape {list(exact.shape)}, got {list(t.shape)}"
        total[0] += (t.double() - exact).square().sum().item()
        total[1] += exact.square().sum().item()


def _accum(inputs: Inputs) -> float:
    """Hopper's FP8 tensor cores keep fewer bits than float32: see moela.testing."""
    first = next(iter(inputs.values()))
    is_fp8 = first.dtype == torch.float8_e4m3fn or bool(inputs.get("quantize_activations"))
    return testing.HOPPER_FP8_SUM if is_fp8 and first.device.type == "cuda" else testing.FLOAT32_SUM


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
