"""`moela plan-ep`: its options, and what it prints."""

import argparse
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from moela.bench.choices import Parser, list_of, new_file, one_of, whole_number
from moela.ep.planner import calibration, report, routing, topology
from moela.ep.planner.memory import LAYOUTS
from moela.ep.planner.model import PAYLOADS
from moela.ep.planner.planning import Case, plan
from moela.shapes import MODELS, GroupShape

MAX_PLANS = 200
GROUPS = "model, none, or two numbers as in 4/8: at most 4 of 8 groups"


def add_arguments(parser: Parser) -> None:
    def option(name: str, default: object, parse: Callable[[str], object], what: str) -> None:
        parser.add_argument(f"--{name}", default=default, type=parse, metavar="…", help=what)

    machines = topology.names()
    option("model", "deepseek-v3", one_of(MODELS), "see `moela bench list` (default: deepseek-v3)")
    option("topology", ["dgx-h100"], list_of(one_of(machines)), f"of {', '.join(machines)} (dgx-h100)")
    option(
        "nodes", None, list_of(whole_number(1, 1 << 14)), "domains of a fast link (default: 4, or 1 if alone)"
    )
    option("gpus", None, list_of(whole_number(1, 1 << 10)), "of a node (default: all of the topology's)")
    option("tokens", [4096], list_of(whole_number(1, 1 << 20)), "of a rank (default: 4096)")
    option("dtype", ["fp8"], list_of(one_of(PAYLOADS)), "of rows in dispatch, fp8 or bf16 (default: fp8)")
    option("routing", ["uniform"], list_of(_routing), f"{routing.KINDS} (default: uniform)")
    option("group-limit", "model", _groups, f"{GROUPS} (default: model)")
    option("layout", ["compact"], list_of(one_of(LAYOUTS)), f"of {', '.join(LAYOUTS)} (default: compact)")
    option("experts", None, whole_number(1, 1 << 14), "on all ranks, copies included (default: no copies)")
    option("capacity", None, _positive, "buffers of so many times the average (default: worst case)")
    option("memory", None, _positive, "GiB for the buffers of a rank (default: a tenth of a GPU's)")
    option("sms", None, whole_number(1, 1 << 10), "that copy (default: as many as it takes)")
    option("overlap", 0.0, _positive, "microseconds of other work beside it (default: 0)")
    option("calibrate", None, Path, "JSON of `moela bench ep --json`: measured constants")
    option("json", None, new_file(".json"), "file to write")


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def _routing(text: str) -> str:
    try:
        return routing.check(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("routing: ")) from None


def _groups(text: str) -> str | GroupShape | None:
    used, slash, num = text.partition("/")
    if text in ("model", "none"):
        return text if text == "model" else None
    if not slash or not used.isdecimal() or not num.isdecimal():
        raise argparse.ArgumentTypeError(f"expected {GROUPS}, got {text!r}")
    return GroupShape(int(num), int(used), "max")


def run(args: argparse.Namespace) -> int:
    """Print the plans of every combination of what was given more than once."""
    plans = [plan(case) for case in _cases(args)]
    print(report.text(plans))
    if args.json:
        args.json.write_text(json.dumps(report.as_json(plans), indent=1) + "\n")
    return 0


def _cases(args: argparse.Namespace) -> list[Case]:
    model = MODELS[args.model]
    machines = [topology.load(name) for name in args.topology]
    if args.calibrate:
        measured = calibration.read(args.calibrate)
        machines = [calibration.calibrate(machine, measured).topology for machine in machines]
    cases = []
    for machine, kind, layout, payload in itertools.product(machines, args.routing, args.layout, args.dtype):
        base = Case(
            model,
            machine,
            nodes=1,
            gpus=1,
            tokens=1,
            payload=payload,
            kind=kind,
            layout=layout,
            groups=model.groups if args.group_limit == "model" else args.group_limit,
            experts=args.experts,
            capacity=args.capacity,
            num_sms=args.sms,
            budget_gib=args.memory,
            overlap_us=args.overlap,
        )
        nodes = args.nodes or [4 if machine.between else 1]
        sizes = itertools.product(nodes, args.gpus or [machine.domain], args.tokens)
        cases += [replace(base, nodes=n, gpus=g, tokens=t) for n, g, t in sizes]
    if len(cases) > MAX_PLANS:
        raise ValueError(f"plan-ep: expected at most {MAX_PLANS} combinations, got {len(cases)}")
    return cases
