"""Measured constants in place of published and assumed ones: sigma, t0, alpha and tau from timed exchanges.

The file is JSON, as `moela bench ep --json` writes it:

    {"format": 1, "measurements": [
      {"path": "direct", "phase": "dispatch", "nodes": 1, "gpus": 8, "tokens": 128, "hidden": 7168,
       "experts": 256, "topk": 8, "payload": "fp8", "time_us": 77.0}, ...]}

path is "hierarchical" or "direct", phase "dispatch" or "combine", payload "fp8" or "bf16", tokens those of a
rank, time_us the median over runs of the slowest rank; routing is uniform. Other fields, such as a machine,
are kept by whoever wrote them and not read.

The model is time = fixed + max(s x, tau m), with s = 1 / sigma, x the time of the bytes at the full rates, m
messages, and fixed t0 or alpha by path. A measurement is bound by messages if x / m < tau / s: those are the
first ones when all are sorted by x / m. So each place to cut the sorted list is tried, where the rest is
linear least squares, of relative errors; the cut whose constants have the smallest error is taken. As a
constant more always fits better, tau is taken only from two measurements or more, and if it makes the squared
error at least four times smaller.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from moela.ep.planner.model import PATHS, PAYLOADS, PHASES, Sizes, exchange, uniform
from moela.ep.planner.topology import SYMBOLS, Figure, Topology

FORMAT = 1
MIN_MEASUREMENTS = 3
TAU_GAIN = 0.25  # of the squared error without it
EXACT = 1e-8  # squared relative error that no clock can tell from none
_FIXED = {"hierarchical": "t0", "direct": "alpha"}


@dataclass(frozen=True)
class Measurement:
    """One exchange, timed."""

    path: str
    phase: str
    nodes: int
    gpus: int
    tokens: int
    hidden: int
    experts: int
    topk: int
    payload: str
    time_us: float

    def __post_init__(self) -> None:
        for name, known in (("path", PATHS), ("phase", PHASES), ("payload", PAYLOADS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name in ("nodes", "gpus", "tokens", "hidden", "experts", "topk"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name}: expected a whole number from 1, got {value!r}")
        if type(self.time_us) not in (int, float) or not 0 < self.time_us < math.inf:
            raise ValueError(f"time_us: expected a time above 0, got {self.time_us!r}")
        if self.topk > self.experts or self.nodes * self.gpus > self.experts:
            raise ValueError(f"experts: expected at least topk and ranks, got {self.experts}")


@dataclass(frozen=True)
class Fit:
    """A topology with the measured figures, and how far its times are from those measured."""

    topology: Topology
    largest_error: float  # |model / measured - 1|


def read(path: Path) -> list[Measurement]:
    """The measurements of a file. Raises ValueError that says what is wrong with it."""
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"{path}: expected a readable file, got {error.strerror}") from None
    except ValueError:
        raise ValueError(f"{path}: expected JSON of `moela bench ep --json`, got something else") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        got = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise ValueError(f"{path}: expected JSON of `moela bench ep --json` with format {FORMAT}, got {got}")
    rows = data.get("measurements")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: measurements: expected a list of objects")
    found = []
    for number, row in enumerate(rows):
        try:
            found.append(Measurement(**{f.name: row[f.name] for f in fields(Measurement)}))
        except KeyError as error:
            raise ValueError(f"{path}: measurements[{number}]: expected a field {error}") from None
        except ValueError as error:
            raise ValueError(f"{path}: measurements[{number}]: {error}") from None
    return found


def calibrate(topology: Topology, measurements: Sequence[Measurement]) -> Fit:
    """Fit the constants that the measurements tell; the others stay as they are.

    Needs three measurements of different sizes, and one more for each constant beyond two: t0 and alpha if
    both paths were measured, and tau, which shows only where messages and not bytes were the limit.
    """
    if len(measurements) < MIN_MEASUREMENTS:
        raise ValueError(
            f"calibrate: expected at least {MIN_MEASUREMENTS} measurements, got {len(measurements)}"
        )
    if topology.between is None and any(m.nodes > 1 for m in measurements):
        raise ValueError(f"calibrate: expected one node, as {topology.name} has no link between nodes")
    problem = _problem(topology, measurements)
    without = _fit(problem, 0)
    with_tau = [fit for cut in range(2, len(measurements)) if (fit := _fit(problem, cut))]
    best = min(with_tau, key=lambda fit: fit[0], default=None)
    if without and (best is None or without[0] <= max(best[0] / TAU_GAIN, EXACT * len(measurements))):
        best = without
    if best is None:
        raise ValueError(
            "calibrate: measurements: expected times that grow with the size, of different sizes; "
            "these fit no constants that are above 0"
        )
    _, constants, largest = best
    source = f"fitted to {len(measurements)} measurements"
    figures = {
        name: Figure(value / SYMBOLS[name][2], "measured", source) for name, value in constants.items()
    }
    return Fit(topology.with_figures(figures), largest)


@dataclass(frozen=True)
class _Problem:
    """One entry per measurement, sorted by how soon messages would bind it."""

    paths: list[str]
    is_path: Tensor  # [n, paths]
    x: Tensor  # seconds of its bytes at the full rates
    m: Tensor  # messages
    measured: Tensor  # seconds
    known: Tensor  # seconds of it that are no constant to be found: signals


def _problem(topology: Topology, measurements: Sequence[Measurement]) -> _Problem:
    rated = topology.with_figures({"sigma": Figure(1.0, "assumed", "")})
    rows = []
    for m in measurements:
        sizes = Sizes(m.nodes, m.gpus, m.experts, m.topk, m.tokens, m.hidden, m.payload)
        e = exchange(m.path, m.phase, sizes, uniform(sizes), rated)
        x = max(e.terms["inside"], e.terms.get("between", 0.0))
        known = e.fixed - rated[_FIXED[m.path]]
        rows.append(
            (x / e.messages if e.messages else math.inf, x, e.messages, m.time_us * 1e-6, known, m.path)
        )
    rows.sort(key=lambda row: row[0])
    _, x, messages, measured, known, path = zip(*rows, strict=True)
    paths = list(dict.fromkeys(path))
    is_path = torch.tensor([[p == each for each in paths] for p in path], dtype=torch.float64)
    columns = (torch.tensor(v, dtype=torch.float64) for v in (x, messages, measured, known))
    return _Problem(paths, is_path, *columns)


def _fit(problem: _Problem, cut: int) -> tuple[float, dict[str, float], float] | None:
    """(squared errors, constants, largest error) if messages bind the first `cut`; None if they cannot."""
    by_message = torch.arange(len(problem.x)) < cut
    if bool((by_message & (problem.m == 0)).any()):
        return None
    columns = [problem.is_path, problem.x.where(~by_message, 0.0)[:, None]]
    if cut:
        columns.append(problem.m.where(by_message, 0.0)[:, None])
    target = problem.measured - problem.known
    solved = _relative_least_squares(torch.cat(columns, 1), target, problem.measured)
    if solved is None or bool((solved < 0).any()):
        return None
    fixed, s = solved[: len(problem.paths)], solved[len(problem.paths)]
    tau = solved[-1] if cut else torch.zeros((), dtype=torch.float64)
    if s == 0:
        return None
    errors = (
        problem.is_path @ fixed + torch.maximum(s * problem.x, tau * problem.m) - target
    ) / problem.measured
    constants = {_FIXED[path]: value.item() for path, value in zip(problem.paths, fixed, strict=True)}
    constants["sigma"] = 1 / s.item()
    if cut:
        constants["tau"] = tau.item()
    return errors.square().sum().item(), constants, errors.abs().max().item()


def _relative_least_squares(a: Tensor, target: Tensor, unit: Tensor) -> Tensor | None:
    """Minimise |(a v - target) / unit|; None where the columns do not tell the constants apart."""
    weighted = a / unit[:, None]
    norms = weighted.norm(dim=0)
    if bool((norms == 0).any()) or len(a) < a.size(1):
        return None
    scaled = weighted / norms
    if torch.linalg.matrix_rank(scaled, rtol=1e-9) < a.size(1):
        return None
    return torch.linalg.lstsq(scaled, (target / unit)[:, None], driver="gelsd").solution[:, 0] / norms
