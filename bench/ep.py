"""`moela bench ep`: an exchange among ranks of this machine, beside Gloo and a copy in memory."""

import argparse
import dataclasses
import json

import torch
from moela import info
from moela.bench import ep_gpu, report
from moela.bench.choices import Parser, list_of, new_file, one_of, whole_number
from moela.bench.commands import text_console
from moela.bench.ep_ranks import COMBINE, DISPATCH, GLOO, MEMCPY, Measured, Setting, measure
from moela.bench.tables import LOOK
from moela.ep.transports import TRANSPORTS
from rich.table import Table

# The ranks of the others are threads, on several GPUs, or on several hosts.
ON_CPU = tuple(name for name in TRANSPORTS if name not in ("local", "symm", "hier"))
ON_GPU = "local"
FORMAT = 1  # of the file of --json, which `moela plan-ep --calibrate` reads


def add_arguments(parser: Parser) -> None:
    def option(name: str, default, parse, what: str) -> None:
        parser.add_argument(f"--{name}", default=default, type=parse, metavar="…", help=what)

    devices = info.devices()
    option("device", "cpu", one_of(devices), f"one of {', '.join(devices)} (default: cpu)")
    option("ranks", 2, whole_number(1, 64), "processes of one thread each, on a GPU threads (default: 2)")
    names = (*ON_CPU, ON_GPU)
    what = f"on the CPU of {', '.join(ON_CPU)} (default: all), on a GPU {ON_GPU}"
    option("transport", None, list_of(one_of(names)), what)
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
    device = torch.device(args.device)
    usable = ON_CPU if device.type == "cpu" else (ON_GPU,)
    for name in args.transport or ():
        if name not in usable:
            raise ValueError(f"--transport: expected one of {', '.join(usable)} on {device}, got {name!r}")
    setting = Setting(
        ranks=args.ranks,
        transports=tuple(args.transport or usable),
        tokens=tuple(args.tokens),
        hidden=args.hidden,
        topk=args.topk,
        experts=args.experts,
        rounds=args.rounds,
    )
    if device.type != "cpu":
        return _run_on_gpu(args, setting, device)
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
        _write(args.json, setting, machine, found, [])
    return 0


def _run_on_gpu(args: argparse.Namespace, setting: Setting, device: torch.device) -> int:
    found = ep_gpu.measure(setting, device)
    console = text_console()
    console.print(ep_gpu.table(setting, found))
    console.print(
        "\nA call is one exchange of all ranks, replayed from CUDA graphs; GB/s of the rows of x that a rank "
        "sends,\nand of what all ranks read and write.\n"
        f"% {ep_gpu.COPY}: of the rate at which one copy in the memory of the GPU reads and writes as much."
    )
    if args.json:
        rows = ep_gpu.as_json(setting, found)
        _write(args.json, setting, report.machine(device), [], rows)
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


def _write(path, setting: Setting, machine: dict, found: list[Measured], beside: list[dict]) -> None:
    """The first transport's exchanges are `measurements`, for the planner; all others are `beside`."""
    measurements = []
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
