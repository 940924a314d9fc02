"""A plan in words: tables for a terminal, and the same as JSON."""

import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from moela.ep.planner import memory
from moela.ep.planner.memory import GIB
from moela.ep.planner.model import PATHS, PHASES
from moela.ep.planner.planning import V1_LOW_LATENCY, Plan, chunked_time, helps
from moela.ep.planner.topology import SYMBOLS, Topology

FORMAT = 1  # of the JSON
WIDTH = 118
V1_LIMIT = 32 * GIB  # num_rdma_bytes / 16 has to be an int there
_SATURATED = 0.8  # of a token's K experts are on nodes of their own
_BUSY = 1.2  # a skew that is worth a word
HEADER = (
    "N x G", "tokens", "rows", "way", "nodes", "ranks", "skew", "MB between", "MB inside",
    "dispatch", "combine", "limited by", "buffer",
)  # fmt: skip


def text(plans: Sequence[Plan]) -> str:
    """For a person, without a line break at its end."""
    parts = []
    for key in dict.fromkeys(_setting(p) for p in plans):
        mine = [p for p in plans if _setting(p) == key]
        parts += [_title(mine[0]), _table([HEADER, *(row for p in mine for row in _rows(p))])]
        parts += [_words(p) for p in mine]
    return "\n\n".join([*parts, _LEGEND])


def _setting(p: Plan) -> tuple[str, str, str]:
    return p.case.topology.name, p.case.kind, p.case.layout


def _title(p: Plan) -> str:
    case, model = p.case, p.case.model
    groups = f", {case.groups}" if case.groups else ""
    placed = f", {case.placed} placed" if case.placed != model.num_experts else ""
    lines = [
        f"{model.name}: {model.num_experts} experts{placed}, top {model.topk}{groups}, hidden {model.hidden}"
        f"; routing {case.kind}; layout {case.layout}, {_capacity(case.capacity)}",
        textwrap.fill(f"{case.topology.name}: {case.topology.about}", WIDTH, subsequent_indent="    "),
        f"  {_rate(case.topology, 'b_nv', case.topology.inside)}",
    ]
    if case.topology.between:
        lines.append(f"  {_rate(case.topology, 'b_ib', case.topology.between)}")
    return "\n".join(lines)


def _capacity(capacity: float | None) -> str:
    return "worst case" if capacity is None else f"capacity {capacity:g}"


def _rate(topology: Topology, symbol: str, link: str) -> str:
    figure, sigma = topology.figures[symbol], topology.figures["sigma"]
    return (
        f"{link}: {figure.value:g} GB/s a rank and direction ({figure.kind}), of which {sigma.value:.2g} is "
        f"reached ({sigma.kind})"
    )


def _rows(p: Plan) -> list[tuple[str, ...]]:
    case, rows = p.case, []
    for path in PATHS:
        dispatch, combine = p.exchanges[path]
        slowest = max(dispatch, combine, key=lambda x: x.time)
        is_first = path == PATHS[0]
        skew = max(p.traffic.phi_n, p.traffic.phi_r) if is_first else p.traffic.phi_k
        rows.append(
            (
                f"{case.nodes} x {case.gpus}" if is_first else "",
                f"{case.tokens}" if is_first else "",
                case.payload if is_first else "",
                path,
                f"{p.traffic.kappa_n:.2f}" if is_first else "",
                f"{p.traffic.kappa_r:.2f}" if is_first else "",
                f"{skew:.2f}",
                _mb(dispatch.bytes_between),
                _mb(dispatch.bytes_inside),
                duration(dispatch.time),
                duration(combine.time),
                _resource(p, slowest.limit),
                size(p.buffer) if is_first else "",
            )
        )
    return rows


def _resource(p: Plan, name: str) -> str:
    """What a resource is called on this machine."""
    names = {"inside": p.case.topology.inside, "between": p.case.topology.between}
    return names.get(name) or name


def _words(p: Plan) -> str:
    case = p.case
    head = f"{case.nodes} x {case.gpus} ranks, {case.tokens} tokens, {case.payload}: "
    if case.ranks == 1:
        return head + "one rank, nothing is sent."
    lines = [head + _limit(p)]
    lines += [*_memory(p), *_skew(p), *_helps(p), *_overlap(p)]
    return "\n".join(
        textwrap.fill(
            line, WIDTH, initial_indent="  " * (n > 0), subsequent_indent="    ", break_on_hyphens=False
        )
        for n, line in enumerate(lines)
    )


def _limit(p: Plan) -> str:
    x = p.slowest
    largest = max(x.terms, key=x.terms.__getitem__)
    others = [f"{_resource(p, k)} {duration(v)}" for k, v in sorted(x.terms.items()) if k != largest]
    said = (
        f"{x.phase} {x.path}: {duration(x.time)}, of it {_resource(p, largest)} {duration(x.terms[largest])}"
    )
    said += f"; at the same time {', '.join(others)}" if others else ""
    if x.limit == "fixed cost":
        said += (
            f". Launch and barrier, {duration(x.fixed)}, are the larger part: fewer, larger exchanges help"
        )
    elif x.limit == "between" and x.path == "hierarchical":
        K = p.case.model.topk
        if p.traffic.kappa_n > _SATURATED * K:
            said += (
                f". A token's {K} experts are on {p.traffic.kappa_n:.1f} nodes: more nodes hardly add to it"
            )
    if p.is_memory_bound:
        return f"limited by buffer memory, not by time. {said[0].upper()}{said[1:]}."
    return f"limited by {_resource(p, x.limit)}. {said[0].upper()}{said[1:]}."


def _memory(p: Plan) -> list[str]:
    case = p.case
    others = {name: size(value) for name, value in p.buffers.items() if name != case.layout}
    if p.buffers[V1_LOW_LATENCY] > V1_LIMIT:
        others[V1_LOW_LATENCY] += " (above its limit of 32)"
    compared = ", ".join(" ".join(other) for other in others.items())
    is_share = p.budget is not None and case.budget_gib is None
    of = f", of a budget of {size(p.budget)}{', a tenth of a GPU' * is_share}" if p.budget else ""
    held = f"{case.layout}, {_capacity(case.capacity)}: {size(p.buffer)}{of}"
    lines = [f"Buffer of a rank, {held}; {compared}."]
    needed = memory.capacity_needed(case.layout, p.traffic)
    if case.capacity is not None and case.capacity < needed:
        lines.append(
            f"Capacity {case.capacity:g} drops rows in more than one batch of a hundred; "
            f"{needed:.2f} does not."
        )
    if p.is_memory_bound:
        if p.chunk:
            time = chunked_time(p, p.chunk)
            lines.append(
                f"It fits with {p.chunk} tokens at a time: {duration(time)} instead of {duration(p.time)}."
            )
        if case.capacity is None:
            lines.append(
                f"Or with a capacity factor: {needed:.2f} times the average drops rows in one batch of a "
                "hundred."
            )
        if not p.chunk:
            lines.append("Not even one token at a time fits.")
    return lines


def _skew(p: Plan) -> list[str]:
    skew = max(p.traffic.phi_n, p.traffic.phi_r) if p.path == "hierarchical" else p.traffic.phi_k
    return [f"The busiest receiver gets {skew:.2f} times the mean."] if skew > _BUSY else []


def _helps(p: Plan) -> list[str]:
    found = helps(p)
    if not found:
        return []
    return [f"Would help (now {duration(p.time)} both ways): "
            + "; ".join(f"{h.what}, {duration(h.time)}" for h in found) + "."]  # fmt: skip


def _overlap(p: Plan) -> list[str]:
    case, sms = p.case, p.slowest.num_sms
    tax = ""
    if sms is not None:
        of = case.topology["num_sms"]
        tax = f", at the cost of {sms} of {of:.0f} SMs ({100 * sms / of:.0f} %)"
    if not case.overlap_us:
        return [f"Beside {duration(p.time)} of other work nothing of it is exposed{tax}."]
    work = duration(case.overlap_us * 1e-6)
    return [f"Beside {work} of other work {duration(p.exposed)} of {duration(p.time)} is exposed{tax}."]


_LEGEND = "\n".join(
    (
        "nodes, ranks: that want a token, on average. skew: rows of the busiest over the mean. MB: that a",
        "rank sends in a dispatch. Times are a model's: the best that the links allow.",
    )
)


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    """Columns as wide as they have to be; numbers to the right, words to the left."""
    left = (3, 11)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i in left else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _mb(value: float) -> str:
    return f"{value / 1e6:.1f}"


def duration(seconds: float) -> str:
    us = seconds * 1e6
    return f"{us:.0f} us" if us < 1000 else f"{us / 1000:.2f} ms"


def size(value: float) -> str:
    return f"{value / GIB:.3g} GiB" if value >= GIB else f"{value * 1024 / GIB:.0f} MiB"


def as_json(plans: Sequence[Plan]) -> dict[str, Any]:
    """The same as data: times in microseconds, sizes in bytes."""
    return {"format": FORMAT, "plans": [_record(p) for p in plans]}


def _record(p: Plan) -> dict[str, Any]:
    case = p.case
    exchanges = {
        path: {
            phase: {
                "time_us": 1e6 * x.time,
                "fixed_us": 1e6 * x.fixed,
                "terms_us": {_resource(p, name): 1e6 * value for name, value in x.terms.items()},
                "bytes_between": x.bytes_between,
                "bytes_inside": x.bytes_inside,
                "messages": x.messages,
                "num_sms": x.num_sms,
                "limit": _resource(p, x.limit),
            }
            for phase, x in zip(PHASES, p.exchanges[path], strict=True)
        }
        for path in PATHS
    }
    figures = {
        name: {"what": SYMBOLS[name][0], "unit": SYMBOLS[name][1], **asdict(figure)}
        for name, figure in case.topology.figures.items()
    }
    return {
        "model": case.model.name,
        "topology": {"name": case.topology.name, "figures": figures},
        "nodes": case.nodes,
        "gpus": case.gpus,
        "tokens": case.tokens,
        "payload": case.payload,
        "routing": case.kind,
        "groups": asdict(case.groups) if case.groups else None,
        "experts": case.placed,
        "layout": case.layout,
        "capacity": case.capacity,
        "traffic": asdict(p.traffic),
        "exchanges": exchanges,
        "buffer_bytes": p.buffers,
        "budget_bytes": p.budget,
        "tokens_at_once": p.chunk if p.is_memory_bound else case.tokens,
        "path": p.path,
        "time_us": 1e6 * p.time,
        "exposed_us": 1e6 * p.exposed,
        "limit": _resource(p, p.limit),
        "helps_us": {h.what: 1e6 * h.time for h in helps(p)},
    }
