"""The `moela` command.

Exit codes: 0; 1 if a result was wrong; 2 if what was asked for makes no sense or is not installed.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from moela import backends, info
from moela.bench.choices import Parser, list_of, new_file, one_of, whole_number
from moela.bench.routing import DEFAULT_EXPERTS, KINDS
from moela.ops import SPECS
from moela.shapes import MODELS

OPTIONAL = ("matplotlib", "numpy", "rich", "safetensors")  # what the extra [bench] installs
ALL_BACKENDS = ("all", *backends.BACKENDS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. What a person can get wrong is said in one line on stderr, never as a traceback."""
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        code = _run(_parser(argv).parse_args(argv))
        sys.stdout.flush()  # a reader that has gone is noticed here, not when the interpreter ends
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # what a shell reports of a process that SIGPIPE ended
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in OPTIONAL:
            raise
        return _fail(f"{package} is not installed; pip install 'moela[bench]'")
    except (OSError, ValueError) as error:
        return _fail(str(error))


def _fail(message: str, code: int = 2) -> int:
    print(f"moela: {message}", file=sys.stderr)
    return code


def _run(args: argparse.Namespace) -> int:
    if args.command == "info":
        print(info.report())
        return 0
    if faults := info.environment_faults():
        raise ValueError(faults[0])
    if args.command == "demo":
        from moela.bench import demo

        return demo.run(args)
    if args.command == "plan-ep":
        from moela.bench import plan_ep

        return plan_ep.run(args)
    if args.op == "ep":
        from moela.bench import ep

        return ep.run(args)
    from moela.bench import commands

    if args.op == "list":
        return commands.show_list()
    if args.op == "compare":
        return commands.compare(args.a, args.b)
    return commands.run(args)


def _parser(argv: Sequence[str]) -> Parser:
    parser = Parser(prog="moela", description="Fast operators for MoE and MLA models.")
    sub = parser.add_subparsers(dest="command", required=True, metavar="command")
    sub.add_parser("info", help="what is built, what is usable and why not")
    demo_parser = sub.add_parser("demo", help="a DeepSeek-V3-architecture model in FP8, on this machine")
    if argv[:1] == ["demo"]:  # imported only then: it needs the extra [bench]
        from moela.bench import demo

        demo.add_arguments(demo_parser)
    _add_bench(
        sub.add_parser("bench", help="measure ops against baselines and the roofs of this machine"), argv
    )
    plan_parser = sub.add_parser("plan-ep", help="time and memory of expert parallelism on N nodes x G GPUs")
    if argv[:1] == ["plan-ep"]:
        from moela.bench import plan_ep

        plan_ep.add_arguments(plan_parser)
    return parser


def _add_bench(bench: Parser, argv: Sequence[str]) -> None:
    sub = bench.add_subparsers(dest="op", required=True, metavar="op")
    for op in SPECS:
        _add_options(sub.add_parser(op, help=f"measure {op}"))
    _add_options(sub.add_parser("all", help="measure every op"))
    exchange = sub.add_parser("ep", help="measure exchanges among ranks on this machine")
    if argv[:2] == ["bench", "ep"]:  # as above
        from moela.bench import ep

        ep.add_arguments(exchange)
    sub.add_parser("list", help="ops, models, layers and baselines, with what is missing")
    compare = sub.add_parser("compare", help="what changed between two files of --json")
    compare.add_argument("a", type=Path, metavar="a.json")
    compare.add_argument("b", type=Path, metavar="b.json")


def _add_options(parser: Parser) -> None:
    devices = sorted({name.partition(":")[0] for name in info.devices()}, reverse=True)
    threads = torch.get_num_threads()

    def option(name: str, default: Any, parse: Callable[[str], Any], what: str) -> None:
        parser.add_argument(f"--{name}", default=default, type=parse, metavar="…", help=what)

    option("model", "deepseek-v3", one_of(MODELS), "see `moela bench list` (default: deepseek-v3)")
    option("layers", None, str, "names, or all (default: one of each shape, less the dense layers)")
    option("tokens", [1, 16, 64, 256], list_of(whole_number(1, 1 << 17)), "rows (default: 1,16,64,256)")
    option(
        "batch", [1], list_of(whole_number(1, 1 << 12)), "requests, of mla_decode and its like (default: 1)"
    )
    option("activations", None, list_of(str), "bf16, e4m3 or both, of fp8_gemm (default: bf16)")
    option("weights", None, list_of(str), "dtypes, of ops with experts (default: the first that an op has)")
    option("routing", ["balanced"], list_of(one_of(KINDS)), f"of {', '.join(KINDS)} (default: balanced)")
    option("experts", DEFAULT_EXPERTS, whole_number(1, 1024), f"in memory (default: {DEFAULT_EXPERTS})")
    option("device", devices[0], one_of(devices), f"one of {', '.join(devices)} (default: {devices[0]})")
    option("threads", threads, whole_number(1, os.cpu_count() or 1), f"of the CPU (default: {threads})")
    option("rounds", 11, whole_number(1, 10_000), "samples of each contestant (default: 11)")
    option("backends", ["all"], list_of(one_of(ALL_BACKENDS)), "names, or all that run here (default)")
    option("baselines", ["all"], list_of(str), "names, none, or all that run here (default)")
    option("json", None, new_file(".json"), "file to write, for `moela bench compare`")
    option("plot", None, new_file(".png"), "roofline to draw")


if __name__ == "__main__":
    sys.exit(main())
