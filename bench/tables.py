"""Results as tables for a terminal."""

from collections.abc import Iterable, Sequence

import torch
from moela import backends
from moela.bench.report import Case, Ratio, Report, Result, Wrong
from moela.bench.selection import bench_of
from moela.bench.suite import Bench, why_not_timed
from moela.shapes import MODELS, ModelShape
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

LOOK = {
    "box": SIMPLE,
    "padding": (0, 1, 0, 0),
    "show_edge": False,
    "title_justify": "left",
    "title_style": "bold",
    "caption_justify": "left",
    "header_style": "dim",
}


def result_tables(results: Sequence[Result], wrong: Sequence[Wrong]) -> list[Table]:
    """One table per layer, a section per number of tokens, in it moela's backends first."""
    layers: dict[tuple, list[Case]] = {}
    for case in {r.case: None for r in [*results, *wrong]}:
        layers.setdefault(case.layer_key, []).append(case)
    return [_layer_table(cases, results, wrong) for cases in layers.values()]


def _layer_table(cases: Sequence[Case], results: Sequence[Result], wrong: Sequence[Wrong]) -> Table:
    first = cases[0]
    title = _title(first)
    mine = [r for r in results if r.case in cases]
    own = list(dict.fromkeys(r.contestant for r in mine if not r.is_baseline))
    table = Table(title=title, **LOOK)
    if first.tokens:
        table.add_column("M", justify="right")
    table.add_column("contestant", no_wrap=True)
    has_extra = any(r.extra_bytes is not None for r in mine)
    columns = ["µs", "p10 .. p90", "GB/s", "GFLOP/s", "% roof", "error", *["extra MB"] * has_extra]
    for column in (*columns, *(f"{n} is" for n in own)):
        table.add_column(column, justify="right", no_wrap=True)
    for case in sorted(cases, key=lambda c: c.tokens):
        table.add_section()
        rows = [r for r in mine if r.case == case]
        label = [str(case.tokens)] if case.tokens else []
        for r in rows:
            over = [_over(name, r, rows) for name in own]
            extra = ["" if r.extra_bytes is None else f"{r.extra_bytes / 1e6:,.1f}"] * has_extra
            table.add_row(*label, *_numbers(r), *extra, *over, style="none" if r.is_baseline else "bold")
            label = [""] * len(label)
        for w in (w for w in wrong if w.case == case):
            table.add_row(*label, w.contestant, Text("wrong", style="red"))
            label = [""] * len(label)
    return table


def _title(case: Case) -> str:
    model = MODELS[case.model]
    shape = bench_of(case.op).layers(model)[case.layer]
    title = f"{case.op}  {case.model}.{case.layer}  {shape}  {case.dtype}"
    if case.routing:
        title += f"  {case.num_experts} of {model.num_experts} experts, top {model.topk}, {case.routing}"
    return title + (f"  {case.batch} requests" if case.batch > 1 else "")


def _over(name: str, baseline: Result, rows: Sequence[Result]) -> str:
    """How many times faster the backend of moela is than this baseline."""
    backend = next((r for r in rows if r.contestant == name), None)
    return str(backend.ratio_to(baseline)) if backend and baseline.is_baseline else ""


def _numbers(r: Result) -> list[str]:
    return [
        r.contestant,
        _us(r.median_us),
        f"{_us(r.p10_us)} .. {_us(r.p90_us)}",
        f"{r.gbytes_per_s:.1f}",
        f"{r.gflops_per_s:.1f}",
        f"{r.roofline_percent:.0f}",
        f"{r.error:.0e}" if r.error else "0",
    ]


def _us(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def compare_table(a: Report, b: Report) -> Table:
    """The rows that both have. A ratio is a difference only if the p10 .. p90 of both are apart."""
    table = Table(caption="~ no difference shown: the p10 .. p90 overlap", **LOOK)
    for column in ("case", "contestant"):
        table.add_column(column, no_wrap=column == "contestant")
    for column in ("A µs", "B µs", "B is"):
        table.add_column(column, justify="right", no_wrap=True)
    theirs = {(r.case.key, r.contestant): r for r in b.results}
    for r in a.results:
        other = theirs.get((r.case.key, r.contestant))
        if other:
            ratio = other.ratio_to(r)
            table.add_row(
                str(r.case),
                r.contestant,
                _us(r.median_us),
                _us(other.median_us),
                str(ratio),
                style=_style(ratio),
            )
    return table


def _style(ratio: Ratio) -> str:
    if not ratio.is_difference:
        return "none"
    return "green" if ratio.value > 1 else "red"


def ops_table(benches: Sequence[Bench], device: torch.device) -> Table:
    """Per op its backends and baselines, and why some take no part here."""
    table = Table(title=f"ops, on {device}", **LOOK)
    table.add_column("op", no_wrap=True)
    table.add_column("contestant", no_wrap=True)
    table.add_column("here", no_wrap=False)
    for bench in benches:
        table.add_section()
        label = bench.op
        for name in backends.BACKENDS:
            table.add_row(label, name, _here(why_not_timed(name, bench.op, device), "moela"))
            label = ""
        for baseline in bench.baselines:
            table.add_row(label, baseline.name, _here(baseline.why_not(device), baseline.what))
    return table


def _here(reason: str | None, what: str) -> Text:
    return Text(f"no: {reason}", style="dim") if reason else Text(what)


def models_table(models: Iterable[ModelShape]) -> Table:
    table = Table(title="models and layers, N x K", **LOOK)
    table.add_column("model", no_wrap=True)
    table.add_column("layers")
    for model in models:
        layers = ", ".join(f"{name} {x.N}x{x.K}" for name, x in model.linear_layers().items())
        table.add_row(model.name, Text(layers))
    return table
