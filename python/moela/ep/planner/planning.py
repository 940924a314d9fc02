"""One plan: what a setting of expert parallelism costs, what limits it, and what would help.

What would help is not a list of good advice: each change is put through the same model, and named only if it
makes the exchange faster, with the time that it would take.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from moela.ep.planner import memory, routing
from moela.ep.planner.memory import GIB, LAYOUTS
from moela.ep.planner.model import PATHS, PAYLOADS, PHASES, Exchange, Sizes, Traffic, exchange
from moela.ep.planner.topology import Topology
from moela.shapes import GroupShape, ModelShape

V1_LOW_LATENCY = "DeepEP V1 low latency"
BUFFER_SHARE = 0.1  # of a GPU's memory, for buffers, where no budget is given
NODE_LIMIT = 4  # groups that DeepSeek-V3 lets a token use, one a node
WORTH_NAMING = 0.95  # what would help takes less than this share of the time


@dataclass(frozen=True)
class Case:
    """A setting. `groups` None: no limit; `experts` None: those of the model; `num_sms` None: what is needed.

    capacity None is a buffer that never drops a row; budget_gib None is a tenth of a GPU's memory.
    """

    model: ModelShape
    topology: Topology
    nodes: int
    gpus: int
    tokens: int  # of a rank
    payload: str = "fp8"
    kind: str = "uniform"  # of routing
    layout: str = "compact"
    groups: GroupShape | None = None
    experts: int | None = None
    capacity: float | None = None
    num_sms: int | None = None
    budget_gib: float | None = None
    overlap_us: float = 0.0

    @property
    def ranks(self) -> int:
        return self.nodes * self.gpus

    @property
    def placed(self) -> int:
        """Experts that lie on the ranks, copies included."""
        return self.model.num_experts if self.experts is None else self.experts

    @property
    def sizes(self) -> Sizes:
        model = self.model
        return Sizes(self.nodes, self.gpus, self.placed, model.topk, self.tokens, model.hidden, self.payload)

    def __post_init__(self) -> None:
        for name in ("nodes", "gpus", "tokens"):
            _expect(getattr(self, name) >= 1, name, "a number from 1", getattr(self, name))
        for name, known in (("payload", PAYLOADS), ("layout", LAYOUTS)):
            _expect(getattr(self, name) in known, name, f"one of {', '.join(known)}", getattr(self, name))
        top, E, K, G = self.topology, self.model.num_experts, self.model.topk, self.gpus
        _expect(K <= E, "topk", f"at most the {E} experts of {self.model.name}", K)
        _expect(self.placed >= E, "experts", f"at least the {E} of {self.model.name}", self.placed)
        got = f"{self.ranks}; give --experts, with copies"
        _expect(self.ranks <= self.placed, "ranks", f"at most the {self.placed} experts", got)
        _expect(G <= top.domain, "gpus", f"at most {top.domain} a node of {top.name}", G)
        alone = f"1, as {top.name} has no link between nodes"
        _expect(self.nodes == 1 or top.between is not None, "nodes", alone, self.nodes)
        if self.groups:
            g = self.groups
            _expect(g.num >= 1 and E % g.num == 0, "groups", f"a number that divides {E}", g.num)
            enough = 1 <= g.topk <= g.num and g.topk * (E // g.num) >= K
            _expect(enough, "groups", f"up to {g.num} groups, with {K} experts or more", g.topk)
        for name in ("capacity", "num_sms", "budget_gib"):
            value = getattr(self, name)
            _expect(value is None or value > 0, name, "a number above 0", value)


def _expect(is_right: bool, name: str, what: str, got: object) -> None:
    if not is_right:
        raise ValueError(f"plan-ep: {name}: expected {what}, got {got}")


@dataclass(frozen=True)
class Help:
    """A change, and the time of dispatch and combine with it, in seconds."""

    what: str
    time: float


@dataclass(frozen=True)
class Plan:
    """What a case costs. Exchanges by path: (dispatch, combine)."""

    case: Case
    traffic: Traffic
    exchanges: dict[str, tuple[Exchange, Exchange]]
    buffers: dict[str, int]  # bytes of a rank, of the case's layout and of others to compare
    budget: float | None  # bytes
    chunk: int | None  # tokens at once that keep within the budget, if not all and not none

    @property
    def path(self) -> str:
        """The faster way."""
        return min(PATHS, key=self.time_of)

    def time_of(self, path: str) -> float:
        return sum(x.time for x in self.exchanges[path])

    @property
    def time(self) -> float:
        """Seconds of a dispatch and a combine."""
        return self.time_of(self.path)

    @property
    def exposed(self) -> float:
        return max(0.0, self.time - self.case.overlap_us * 1e-6)

    @property
    def buffer(self) -> int:
        return self.buffers[self.case.layout]

    @property
    def is_memory_bound(self) -> bool:
        return self.budget is not None and self.buffer > self.budget

    @property
    def limit(self) -> str:
        """What binds: the buffer, where it does not fit, whatever the time; else the slowest resource."""
        return "buffer memory" if self.is_memory_bound else self.slowest.limit

    @property
    def slowest(self) -> Exchange:
        return max(self.exchanges[self.path], key=lambda x: x.time)


def plan(case: Case) -> Plan:
    """Sample the routing of a case and put it through the model."""
    spread = _traffic(case)
    buffers = {layout: _buffer(case, spread, layout, case.tokens) for layout in LAYOUTS}
    buffers[V1_LOW_LATENCY] = memory.deepep_v1_low_latency(case.sizes)
    buffers["DeepEP V2"] = memory.deepep_v2(case.sizes)
    exchanges = {path: _exchanges(case, spread, path) for path in PATHS}
    return Plan(case, spread, exchanges, buffers, _budget(case), _chunk(case, spread))


@cache
def _drawn(kind: str, stamp: int, E: int, K: int, groups: GroupShape | None) -> routing.Routing:
    return routing.draw(kind, E, K, groups)


@cache
def _counted(drawn: tuple, placed: int, N: int, G: int) -> routing.Counts:
    return routing.count(_drawn(*drawn), placed, N, G)


def _traffic(case: Case) -> Traffic:
    """A file of routing that has changed since is another one: its time is part of what is remembered."""
    stamp = Path(case.kind).stat().st_mtime_ns if routing.is_file(case.kind) else 0
    drawn = (case.kind, stamp, case.model.num_experts, case.model.topk, case.groups)
    return _counted(drawn, case.placed, case.nodes, case.gpus).traffic(case.tokens)


def _exchanges(case: Case, spread: Traffic, path: str) -> tuple[Exchange, Exchange]:
    args = case.sizes, spread, case.topology, case.num_sms
    dispatch, combine = (exchange(path, phase, *args) for phase in PHASES)
    return dispatch, combine


def _budget(case: Case) -> float | None:
    if case.budget_gib is not None:
        return case.budget_gib * GIB
    return BUFFER_SHARE * case.topology["memory"] if case.topology.has("memory") else None


def _buffer(case: Case, spread: Traffic, layout: str, tokens: int) -> int:
    return memory.buffer_bytes(layout, replace(case.sizes, T=tokens), spread.kappa_r, case.capacity)


def _chunk(case: Case, spread: Traffic) -> int | None:
    """The largest power of two of tokens that keeps within the budget; None if all do, or not even one."""
    budget, T = _budget(case), case.tokens
    if budget is None or _buffer(case, spread, case.layout, T) <= budget:
        return None
    chunk = 1 << (T - 1).bit_length()
    while chunk and _buffer(case, spread, case.layout, chunk) > budget:
        chunk //= 2
    return chunk or None


def chunked_time(found: Plan, chunk: int) -> float:
    """Of all tokens, `chunk` at a time, one exchange after the other: the fixed costs come as often."""
    part = plan(replace(found.case, tokens=chunk))
    return -(-found.case.tokens // chunk) * part.time_of(found.path)


def helps(found: Plan) -> list[Help]:
    """Changes that make dispatch and combine faster, the best first."""
    tried = (Help(what, plan(case).time) for what, case in _changes(found))
    return sorted((h for h in tried if h.time < WORTH_NAMING * found.time), key=lambda h: h.time)


def _changes(found: Plan) -> Iterator[tuple[str, Case]]:
    case = found.case
    if case.payload == "bf16":
        yield "fp8 rows in dispatch", replace(case, payload="fp8")
    is_drawn = not routing.is_file(case.kind)
    E, K, N = case.model.num_experts, case.model.topk, case.nodes
    fits = case.placed == E and E % N == 0 and NODE_LIMIT * E // N >= K
    if is_drawn and fits and found.traffic.kappa_n > NODE_LIMIT:
        limited = GroupShape(N, NODE_LIMIT, "max")
        yield f"routing that keeps a token on {NODE_LIMIT} nodes", replace(case, groups=limited)
    wider = next((f for f in (8, 4, 2) if N % f == 0), None)
    if wider:
        top = replace(case.topology, domain=max(case.topology.domain, case.gpus * wider))
        what = f"nodes of {case.gpus * wider} GPUs on {case.topology.inside}"
        yield what, replace(case, topology=top, nodes=N // wider, gpus=case.gpus * wider)
    if case.num_sms is not None:
        yield "as many SMs as it needs", replace(case, num_sms=None)
    if case.kind != "uniform" and is_drawn:
        yield "experts equally busy (copies of the busy ones)", replace(case, kind="uniform")
