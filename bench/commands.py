"""`moela bench`: run, list, compare."""

import argparse
import importlib
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from moela.bench import report, tables
from moela.bench.report import Case, Report, Result, Wrong
from moela.bench.roofline import Probes, probes_for
from moela.bench.selection import Lineup, Wanted, bench_of, lineups, select_cases
from moela.bench.suite import measure
from moela.bench.timer import Clock, clock_for
from moela.ops import SPECS
from moela.shapes import MODELS
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

REFRESH_SECONDS = 0.2
FEW_ROUNDS = 5
ABOVE_THE_ROOF = 105.0  # percent; less is noise
# What makes times of two reports incomparable.
CONDITIONS = ("machine.cpu", "machine.isa", "machine.gpu", "machine.threads", "versions.torch")


def run(args: argparse.Namespace) -> int:
    """Measure, print tables, write files. Everything that can be refused is refused before measuring."""
    device = torch.device(args.device)
    torch.set_num_threads(args.threads)
    benches = [bench_of(op) for op in (SPECS if args.op == "all" else [args.op])]
    takes_part = {x.bench.op: x for x in lineups(benches, device, args.backends, args.baselines)}
    cases = select_cases(benches, Wanted(**{f.name: getattr(args, f.name) for f in fields(Wanted)}))
    plot = importlib.import_module("moela.bench.plot").plot if args.plot else None

    where = report.machine(device) | {"load_before": report.load_average()}
    clock, probes = clock_for(device), probes_for(device, args.threads)
    results: list[Result] = []
    wrong: list[Wrong] = []
    total = sum((len(takes_part[case.op]) + len(probes.contestants)) * args.rounds for case in cases)
    with _progress(total) as advance:
        for case in cases:
            # A function, so that what one case holds is gone before the next is made: these are gigabytes.
            right, faults = _measure(takes_part[case.op], case, device, probes, clock, args.rounds, advance)
            results += right
            wrong += faults
    where |= {
        "load_after": report.load_average(),
        "clock": clock.name,
        "roofs": probes.source,
        "rounds": args.rounds,
    }
    found = report.report(where, results, wrong)
    _show(found, takes_part.values())
    if args.json:
        report.write(found, args.json)
    if plot and results:
        plot(results, args.plot, f"{args.op}, {args.model}", describe(where))
    return 1 if wrong else 0


def _measure(
    lineup: Lineup,
    case: Case,
    device: torch.device,
    probes: Probes,
    clock: Clock,
    rounds: int,
    advance: Callable[[str, int], None],
) -> tuple[list[Result], list[Wrong]]:
    advance(str(case), 0)
    inputs = lineup.bench.inputs(case, device)
    return measure(
        lineup.bench,
        case,
        inputs,
        lineup.entries(inputs, lineup.bench.small_inputs(case, device)),
        probes=probes,
        clock=clock,
        rounds=rounds,
        on_sample=lambda name: advance(str(case), 1),
    )


@contextmanager
def _progress(total: int) -> Iterator[Callable[[str, int], None]]:
    """A bar on a terminal, nothing elsewhere. It has no thread of its own: that would take CPU time."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("samples"))
    with Progress(
        *columns, console=console, auto_refresh=False, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=total)
        drawn = 0.0

        def advance(what: str, samples: int) -> None:
            nonlocal drawn
            is_due = time.monotonic() - drawn > REFRESH_SECONDS
            bar.update(task, description=what, advance=samples, refresh=is_due)
            drawn = time.monotonic() if is_due else drawn

        yield advance


def describe(where: dict[str, Any]) -> str:
    """The machine and the conditions in one line."""
    threads = f"{where['threads']} thread{'s' if where['threads'] > 1 else ''}"
    parts = [where["gpu"]] if where["gpu"] else [where["cpu"], where["isa"], threads]
    load = f"load average {where['load_before']} before, {where['load_after']} after"
    return ", ".join([*parts, where["clock"], load])


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raise on, to `moela.bench.cli`: rich would exit with 1, which here means a wrong result."""
        raise


def text_console() -> Console:
    """Text as it is, as messages may hold brackets. A pipe has no width, so nothing is cut off there."""
    width = None if sys.stdout.isatty() else 120
    return _Console(highlight=False, markup=False, emoji=False, width=width)


def _show(found: Report, takes_part: Collection[Lineup]) -> None:
    console = text_console()
    for table in tables.result_tables(found.results, found.wrong):
        console.print(table)
        console.print()
    if found.results:
        read = _span([r.roof_gbytes_per_s for r in found.results])
        peak = _span([r.roof_gflops_per_s for r in found.results])
        source = found.machine["roofs"]
        console.print(f"Roofs: DRAM read {read} GB/s, multiply-add {peak} GFLOP/s ({source}).")
        console.print(
            "Rates are the algorithm's; data is cold, code is warm; error is |got - exact| / |exact|."
        )
    if any(r.extra_bytes is not None for r in found.results):
        console.print("extra: the peak of a first call's memory beyond its inputs, result included.")
    if any(r.is_baseline for r in found.results):
        console.print('"cpu is 2.00x": twice as fast as the row; "~": no difference, p10 .. p90 overlap.')
    if any(r.roofline_percent > ABOVE_THE_ROOF for r in found.results):
        console.print("Above the roof: bfloat16 and int8 instructions multiply faster than float32.")
    console.print(describe(found.machine))
    if found.machine["rounds"] < FEW_ROUNDS:
        console.print(f"Fewer than {FEW_ROUNDS} rounds: p10 .. p90 says little.", style="yellow")
    if found.machine["load_before"] + found.machine["threads"] > found.machine["cores"] + 0.5:
        console.print("Others were computing on this machine: expect wide intervals.", style="yellow")
    absent: dict[str, dict[str, None]] = {}
    for lineup in takes_part:
        for name, reason in lineup.absent.items():
            absent.setdefault(reason, {})[name] = None
    for reason, names in absent.items():
        console.print(f"Not timed: {', '.join(names)}: {reason}")
    for w in found.wrong:
        console.print(f"Wrong: {w.contestant} on {w.case}: {w.reason}", style="red")


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} .. {high}"


def show_list() -> int:
    """Everything that `moela bench` has names for."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    console = text_console()
    console.print(tables.ops_table([bench_of(op) for op in SPECS], device))
    console.print(tables.models_table(MODELS.values()))
    return 0


def compare(a: Path, b: Path) -> int:
    """What is faster or slower in b than in a."""
    old, new = report.read(a), report.read(b)
    console = text_console()
    console.print(f"A  {a}  {old.date}  {old.commit}\nB  {b}  {new.date}  {new.commit}")
    if different := [c for c in CONDITIONS if _condition(old, c) != _condition(new, c)]:
        values = [f"{c.split('.')[1]} {_condition(old, c)} / {_condition(new, c)}" for c in different]
        console.print(f"Not the same conditions: {', '.join(values)}", style="yellow")
    console.print(tables.compare_table(old, new))
    for name, here, there in (("A", old, new), ("B", new, old)):
        others = {(r.case.key, r.contestant) for r in there.results}
        for r in here.results:
            if (r.case.key, r.contestant) not in others:
                console.print(f"Only in {name}: {r.contestant} on {r.case}")
    return 0


def _condition(found: Report, name: str) -> Any:
    part, key = name.split(".")
    return getattr(found, part).get(key)
