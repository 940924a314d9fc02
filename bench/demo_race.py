"""The contestants of the demo: moela on the mapped weights, and what users of torch do today."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import cycle

from moela.bench import expert_mlp, memory, report
from moela.bench.checkpoint import Expert
from moela.bench.demo_view import Advance
from moela.bench.expert_mlp import Linears
from moela.bench.report import Case, Result
from moela.bench.roofline import Probes
from moela.bench.timer import Clock, Contestant, race
from torch import Tensor

ROUNDS = 9
MINE = "moela, FP8 as mapped"
BASELINES: dict[str, Callable[[Expert], Linears]] = {
    "torch, dequantize each call": expert_mlp.dequantize_each_call,
    "torch, bf16 ahead": expert_mlp.bf16_ahead,
    "torch, fp32 ahead": expert_mlp.fp32_ahead,
}
_COPY_ITEM_BYTES = {"torch, bf16 ahead": 2, "torch, fp32 ahead": 4}

# By contestant, its linears of each expert that is timed.
Lineup = dict[str, list[Linears]]


def baselines(experts: Sequence[Expert], advance: Advance) -> tuple[Lineup, list[str]]:
    """Those that there is memory for, and a line for each of the others."""
    lineup: Lineup = {}
    absent = []
    num_weights = sum(weight.q.numel() for expert in experts for weight in expert)
    for name, prepare in BASELINES.items():
        needed, free = num_weights * _COPY_ITEM_BYTES.get(name, 0), memory.available_bytes()
        if free is not None and needed > free // 2:
            absent.append(f"Not timed: {name}: needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free.")
        else:
            lineup[name] = [prepare(expert) for expert in experts]
        advance()
    return lineup, absent


def num_samples(lineup: Lineup, probes: Probes) -> int:
    return ROUNDS * (len(lineup) + len(probes.contestants))


def run(
    case: Case,
    inputs: Sequence[Tensor],
    lineup: Lineup,
    errors: Mapping[tuple[str, int], float],
    clock: Clock,
    probes: Probes,
    advance: Advance,
) -> list[Result]:
    """Time everybody on one number of tokens, with the probes of the roofs in the same rounds.

    Args:
        case: what is computed.
        inputs: x of each timed expert; the experts take turns, as in a model.
        errors: relative, by contestant and number of tokens.
        advance: called after each sample.
    """
    contestants = [
        Contestant(
            name, _in_turn([partial(expert_mlp.mlp, *pair) for pair in zip(inputs, linears, strict=True)])
        )
        for name, linears in lineup.items()
    ]
    entrants = [*contestants, *probes.contestants]
    timings = race(entrants, rounds=ROUNDS, clock=clock, before=probes.evict, on_sample=lambda _: advance())
    roofline = probes.roofline(timings)
    return [
        report.result(case, c.name, c.name != MINE, timings[c.name], errors[c.name, case.tokens], roofline)
        for c in contestants
    ]


def _in_turn(calls: Sequence[Callable[[], object]]) -> Callable[[], object]:
    """Each call runs the next of `calls`."""
    turns = cycle(calls)
    return lambda: next(turns)()
