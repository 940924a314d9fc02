"""From the words of a command line to cases and contestants. Refuses what makes no sense: ValueError."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from moela import backends
from moela.bench.choices import expect_one_of
from moela.bench.report import Case
from moela.bench.suite import Bench, Entry, Inputs, backend_call, why_not_timed
from moela.shapes import MODELS


@dataclass(frozen=True)
class Wanted:
    """What to measure ops on, as the command line says it. None: what the bench has as its default."""

    model: str
    layers: str | None
    tokens: Sequence[int]
    activations: Sequence[str] | None
    weights: Sequence[str] | None
    routing: Sequence[str]
    experts: int
    batch: Sequence[int] = (1,)


def bench_of(op: str) -> Bench:
    return importlib.import_module(f"moela.bench.bench_{op}").BENCH


def default_layers(bench: Bench, model: str) -> list[str]:
    """The first layer of each shape that the op tells apart, less the dense ones: a model has few of them."""
    by_dims = {}
    for name in bench.layers(MODELS[model]):
        if not name.startswith("dense_"):
            [case] = bench.cases(model, [name], [1], bench.dtypes[:1])
            by_dims.setdefault(str(bench.dims(bench.layer(case), 1, case.dtype)), name)
    return list(by_dims.values())


def select_cases(benches: Sequence[Bench], wanted: Wanted) -> list[Case]:
    """The cases of every op, in the order in which they are measured."""
    known = list(dict.fromkeys(name for bench in benches for name in bench.layers(MODELS[wanted.model])))
    if not known:
        having = [model for model, shape in MODELS.items() if any(bench.layers(shape) for bench in benches)]
        expected = f"expected one with a layer for {benches[0].op} ({', '.join(having)})"
        raise ValueError(f"--model: {expected}, got {wanted.model!r}")
    names = [] if wanted.layers is None else list(dict.fromkeys(wanted.layers.split(",")))
    for name in names:
        expect_one_of(f"--layers of {wanted.model}", name, [*known, "all"])
    expect_dtypes(benches, "activations", wanted.activations)
    expect_dtypes(benches, "weights", wanted.weights)
    if tuple(wanted.batch) != (1,) and not any(bench.has_batch for bench in benches):
        raise ValueError(f"--batch: expected 1 for {benches[0].op}, got {max(wanted.batch)}")
    topk = MODELS[wanted.model].topk
    if wanted.experts < topk:
        got = f"expected at least its topk {topk}, got {wanted.experts}"
        raise ValueError(f"--experts of {wanted.model}: {got}")
    cases = []
    for bench in benches:
        layers = list(bench.layers(MODELS[wanted.model]))
        if names and "all" not in names:
            layers = [name for name in names if name in layers]
        elif not names:
            layers = default_layers(bench, wanted.model)
        dtypes = getattr(wanted, bench.dtype_option) or bench.dtypes[:1]
        dtypes = [dtype for dtype in bench.dtypes if dtype in dtypes]
        of_experts = wanted.routing, wanted.experts
        cases += bench.cases(wanted.model, layers, wanted.tokens, dtypes, *of_experts, wanted.batch)
    return cases


def expect_dtypes(benches: Sequence[Bench], option: str, dtypes: Sequence[str] | None) -> None:
    """The dtypes of --activations, or of --weights, are such as an op has there."""
    mine = [bench for bench in benches if bench.dtype_option == option]
    known = list(dict.fromkeys(dtype for bench in mine for dtype in bench.dtypes))
    for dtype in dtypes or ():
        if not known:
            raise ValueError(f"--{option}: expected none for {benches[0].op}, got {dtype!r}")
        expect_one_of(f"--{option}", dtype, known)


class Lineup:
    """Who takes part in the bench of an op; `absent` says why the others do not."""

    def __init__(
        self,
        bench: Bench,
        device: torch.device,
        wanted_backends: Sequence[str],
        wanted_baselines: Sequence[str],
    ):
        self.bench = bench
        self.absent: dict[str, str] = {}
        # The reference defines the result and is slow by design: it runs if named, or if nothing else can.
        timed = [name for name in backends.BACKENDS if name != "reference"]
        reasons = {name: why_not_timed(name, bench.op, device) for name in backends.BACKENDS}
        self.backends = self._present(reasons, timed, wanted_backends) or ["reference"]
        self._known = {b.name: b for b in bench.baselines}
        reasons = {name: b.why_not(device) for name, b in self._known.items()}
        self.baselines = self._present(reasons, list(self._known), wanted_baselines)

    def _present(self, reasons: dict[str, str | None], every: list[str], wanted: Sequence[str]) -> list[str]:
        """The names wanted that have no reason against them. One asked for by name must have none."""
        names = every if "all" in wanted else [name for name in reasons if name in wanted]
        for name in names:
            if reasons[name] and name in wanted:
                raise ValueError(f"{self.bench.op}: {name} cannot take part: {reasons[name]}")
        self.absent |= {name: reasons[name] for name in names if reasons[name]}
        return [name for name in names if not reasons[name]]

    def __len__(self) -> int:
        return len(self.backends) + len(self.baselines)

    def entries(self, inputs: Inputs, small: Inputs) -> list[Entry]:
        """Ready to run on the inputs, less the baselines that cannot; warmed by small inputs."""
        op = self.bench.op
        entries = [
            Entry(name, backend_call(name, op, inputs), warm=backend_call(name, op, small))
            for name in self.backends
        ]
        for name in self.baselines:
            baseline = self._known[name]
            try:
                warm = baseline.prepare(small)
                entries.append(Entry(name, baseline.prepare(inputs), baseline.tolerance, warm))
            except Exception as error:  # it is other people's code, compilers among it
                self.absent[name] = (str(error).splitlines() or [type(error).__name__])[0]
        return entries


def lineups(
    benches: Sequence[Bench],
    device: torch.device,
    wanted_backends: Sequence[str],
    wanted_baselines: Sequence[str],
) -> list[Lineup]:
    names = list(dict.fromkeys(b.name for bench in benches for b in bench.baselines))
    for name in wanted_baselines:
        expect_one_of("--baselines", name, [*names, "all", "none"])
    return [Lineup(bench, device, wanted_backends, wanted_baselines) for bench in benches]
