"""What the demo shows: bars while it works, then facts and one table."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from moela import backends
from moela.bench.commands import REFRESH_SECONDS, describe
from moela.bench.report import Result
from moela.bench.tables import LOOK
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

Advance = Callable[[], None]
# (what is done, number of steps) -> called after each step
Phase = Callable[[str, int], Advance]

NOTES = (
    "GB/s and GFLOP/s are the algorithm's: FP8 weights are read once, whatever the contestant reads.",
    "Caches are cold. % roof: of what the DRAM and multiply-add rates of this machine allow.",
    'error: |y - exact| / |exact|. "moela is 2.00x": twice as fast as this row. "~": p10 .. p90 overlap.',
)


@contextmanager
def phases() -> Iterator[Phase]:
    """A bar per phase on a terminal, nothing elsewhere. They have no thread: that would take CPU time."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, auto_refresh=False, disable=not console.is_terminal) as bars:

        def phase(what: str, total: int) -> Advance:
            task = bars.add_task(f"{what:<46}", total=total)
            bars.refresh()
            drawn = done = 0

            def advance() -> None:
                nonlocal drawn, done
                done += 1
                is_due = done == total or time.monotonic() - drawn > REFRESH_SECONDS
                bars.update(task, advance=1, refresh=is_due)
                drawn = time.monotonic() if is_due else drawn

            return advance

        yield phase


def results_table(results: Sequence[Result]) -> Table:
    """A section per number of tokens, moela first, then what it is compared with."""
    mine = {r.case: r for r in results if not r.is_baseline}
    table = Table(**LOOK)
    table.add_column("tokens", justify="right")
    table.add_column("one expert", no_wrap=True)
    for column in ("ms", "p10 .. p90", "GB/s", "GFLOP/s", "% roof", "error", "moela is"):
        table.add_column(column, justify="right", no_wrap=True)
    for case in dict.fromkeys(r.case for r in results):
        table.add_section()
        label = str(case.tokens)
        for r in (r for r in results if r.case == case):
            ratio = str(mine[case].ratio_to(r)) if r.is_baseline else ""
            table.add_row(label, *_numbers(r), ratio, style="none" if r.is_baseline else "bold")
            label = ""
    return table


def _numbers(r: Result) -> list[str]:
    return [
        r.contestant,
        _ms(r.median_us),
        f"{_ms(r.p10_us)} .. {_ms(r.p90_us)}",
        f"{r.gbytes_per_s:.1f}",
        f"{r.gflops_per_s:.1f}",
        f"{r.roofline_percent:.0f}",
        f"{100 * r.error:.2f} %",
    ]


def _ms(us: float) -> str:
    """Three digits, as far as they say something."""
    ms = us * 1e-3
    return f"{ms:.2f}" if ms < 10 else f"{ms:.1f}" if ms < 100 else f"{ms:,.0f}"


def notes(results: Sequence[Result], where: dict[str, Any], backend: str) -> list[str]:
    """What the numbers mean, and what they were measured against."""
    read = _span([r.roof_gbytes_per_s for r in results])
    peak = _span([r.roof_gflops_per_s for r in results])
    lines = [
        *NOTES,
        f"Roofs: DRAM read {read} GB/s, multiply-add {peak} GFLOP/s ({where['roofs']}).",
        describe(where),
    ]
    if any(r.roofline_percent > 110 for r in results):
        lines.append(
            "More than 100 %: other work slowed the roof's probe, or the contestant multiplies in bfloat16 "
            "and the probe in float32."
        )
    if backend != "cpu":
        reason = backends.why_not("cpu", "fp8_gemm", "cpu")
        lines.append(f"[yellow]moela ran its slow {backend}, not its kernel for the CPU: {reason}.[/]")
    if where["load_before"] + where["threads"] > where["cores"] + 0.5:
        lines.append("[yellow]Others were computing on this machine: expect wide intervals.[/]")
    return lines


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} .. {high}"
