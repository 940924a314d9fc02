"""`moela bench ep`: an exchange among ranks of this machine, beside Gloo and a copy in memory."""

import argparse
import dataclasses
import json

from moela.bench import report
from moela.bench.choices import Parser, list_of, new_file, one_of, whole_number
from moela.bench.commands import text_console
from moela.bench.ep_ranks import COMBINE, DISPATCH, GLOO, MEMCPY, Measured, Setting, measure
from moela.bench.tables import LOOK
from moela.ep.transports import TRANSPORTS
from rich.table import Table

FORMAT = 1  # of the file of --json, which `moela plan-ep --calibrate` reads


def add_arguments(parser: Parser) -> None:
    def option(name: str, default, parse, what: str) -> None:
        parser.add_argument(f"--{name}", default=default, type=parse, metavar="…", help=what)

    # The ranks of the others are threads, or on several hosts.
    names = tuple(name for name in TRANSPORTS if name not in ("local", "hier"))
    option("ranks", 2, whole_number(1, 64), "processes on this machine, of one thread each (default: 2)")
    option("transport", [*names], list_of(one_of(names)), f"of {', '.join(names)} (default: all)")
    option(
        "tokens", [1, 16, 128, 1024], list_of(whole_number(1, 1 << 17)), "of a rank (default: 1,16,128,1024)"
    )
    option("hidden", 7168, whole_number(1, 1 << 20), "bfloat16 values of a token (default: 7168)")
    option("topk", 8, whole_number(1, 1024), "experts of a token, chosen at random (default: 8)")
    option("experts", 256, whole_number(1, 1 << 16), "of all ranks (default: 256)")
    option("rounds", 11, whole_number(1, 10_000), "samples of each contestant (default: 11)")
    option("json", None, new_file(".json"), "file to write, for `moela plan-ep --calibrate`")


def run(args: argparse.Namespace) -> int:
    if args.topk > args.experts:
        raise ValueError(f"--topk: expected at most {args.experts} experts, got {args.topk}")
    setting = Setting(
        ranks=args.ranks,
        transports=tuple(args.transport),
        tokens=tuple(args.tokens),
        hidden=args.hidden,
        topk=args.topk,
        experts=args.experts,
        rounds=args.rounds,
    )
    machine = report.machine("cpu") | {"threads": 1, "load_before": report.load_average()}
    found = measure(setting)
    machine["load_after"] = report.load_average()
    console = text_console()
    console.print(_table(setting, found))
    console.print(
        "\nA call is one exchange, on the slowest rank; GB/s of the rows of x that a rank sends.\n"
        f"x {GLOO}: times as fast as torch's all_to_all_single, on Gloo, of the counts and of packed rows.\n"
        f"% {MEMCPY}: of the rate at which all ranks copy these rows at once. Rows are copied once to go\n"
        "(rows), once more to where dispatch returns them, and read once more by combine.\n"
        f"{machine['cpu']}, {machine['cores']} cores, load average {machine['load_before']} before, "
        f"{machine['load_after']} after"
    )
    if args.json:
        _write(args.json, setting, machine, found)
    return 0


def _table(setting: Setting, found: list[Measured]) -> Table:
    title = (
        f"{setting.ranks} ranks, {setting.hidden} bfloat16, top-{setting.topk} of {setting.experts} experts"
    )
    table = Table(title=title, **LOOK)
    for column in ("tokens", "transport", "call"):
        table.add_column(column, justify="right" if column == "tokens" else "left", no_wrap=True)
    for column in ("µs", "p10 .. p90", "GB/s", f"x {GLOO}", f"% {MEMCPY}"):
        table.add_column(column, justify="right", no_wrap=True)
    for tokens in setting.tokens:
        table.add_section()
        rows = [m for m in found if m.tokens == tokens]
        gloo, memcpy = (next(m.timing.median for m in rows if m.what == name) for name in (GLOO, MEMCPY))
        for m in rows:
            t = m.timing
            table.add_row(
                str(tokens),
                m.transport or "(torch)",
                m.what,
                f"{t.median * 1e6:,.0f}",
                f"{t.p10 * 1e6:,.0f} .. {t.p90 * 1e6:,.0f}",
                f"{m.num_bytes / t.median / 1e9:.2f}",
                f"{gloo / t.median:.1f}",
                f"{memcpy / t.median:.0%}",
                style="bold" if m.transport else "none",
            )
    return table


def _write(path, setting: Setting, machine: dict, found: list[Measured]) -> None:
    """The first transport's exchanges are `measurements`, for the planner; all others are `beside`."""
    measurements, beside = [], []
    for m in found:
        row = {
            "transport": m.transport or "torch",
            "path": "hierarchical",  # a token goes to a rank once
            "phase": m.what,
            "nodes": 1,
            "gpus": setting.ranks,
            "tokens": m.tokens,
            "hidden": setting.hidden,
            "experts": setting.experts,
            "topk": setting.topk,
            "payload": "bf16",
            "time_us": m.timing.median * 1e6,
            "p10_us": m.timing.p10 * 1e6,
            "p90_us": m.timing.p90 * 1e6,
        }
        is_first = m.transport == setting.transports[0] and m.what in (DISPATCH, COMBINE)
        (measurements if is_first else beside).append(row)
    data = {
        "format": FORMAT,
        "machine": machine,
        "versions": report.versions(),
        "commit": report.commit(),
        "setting": dataclasses.asdict(setting),
        "measurements": measurements,
        "beside": beside,
    }
    path.write_text(json.dumps(data, indent=1) + "\n")
