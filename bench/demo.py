"""`moela demo`: the routed experts of one layer, run straight from an FP8 checkpoint on disk.

Write a shard in the published layout, map it, run its experts, hold every result against float64, and race
moela against what users of torch do today.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, count
from math import isfinite
from pathlib import Path
from typing import NamedTuple

import moela
import torch
from moela import backends
from moela.bench import checkpoint, demo_race, demo_view, expert_mlp, memory, report
from moela.bench.checkpoint import Expert, Weight
from moela.bench.choices import list_of, new_file, one_of, whole_number
from moela.bench.commands import describe
from moela.bench.demo_race import MINE
from moela.bench.demo_view import Phase
from moela.bench.expert_mlp import Steps
from moela.bench.plot import plot
from moela.bench.report import Case
from moela.bench.roofline import probes_for
from moela.bench.suite import why_not_timed
from moela.bench.timer import clock_for
from moela.shapes import MODELS, ModelShape
from rich.console import Console
from torch import Tensor

FOLDER = Path("out/demo")
SHARD_BYTES = 710_000_000  # of the default number of experts: sixteen of DeepSeek-V3
# These are timed, and get every number of tokens. The others get the smallest number, because 256 tokens take
# a second per expert in float64.
TIMED = 3
WEIGHT_STD = 0.02
# Experts that are no down(silu(gate) * up) in blocks of 128 x 128.
UNFIT = dict.fromkeys(("gpt-oss-20b", "gpt-oss-120b"), "MXFP4, biases and a clamped activation")

Errors = dict[tuple[str, int], float]  # relative, by contestant and number of tokens


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default="deepseek-v3",
        type=one_of(MODELS),
        help="has these dimensions (default: deepseek-v3)",
    )
    parser.add_argument(
        "--experts", default=None, type=whole_number(1, 1024), help="in the shard (default: about 700 MB)"
    )
    parser.add_argument(
        "--tokens",
        default=[1, 16, 256],
        type=list_of(whole_number(1, 8192)),
        help="that one expert gets (default: 1,16,256)",
    )
    parser.add_argument(
        "--threads",
        default=torch.get_num_threads(),
        type=whole_number(1, os.cpu_count() or 1),
        help="(default: %(default)s); on one, CPU time is measured, which others disturb less",
    )
    parser.add_argument(
        "--dir", default=FOLDER, type=Path, help=f"keeps the shard for the next time (default: {FOLDER})"
    )
    parser.add_argument(
        "--plot", default=None, type=new_file(".png"), help=f"(default: {FOLDER}/roofline.png)"
    )


class Run(NamedTuple):
    """One expert: its input, all steps of moela, and the y of each baseline, by the number of tokens."""

    x: dict[int, Tensor]
    steps: dict[int, Steps]
    baselines: dict[str, dict[int, Tensor]]


def run(args: argparse.Namespace) -> int:
    """The whole demo. 1 if a result was wrong; ValueError where what was asked for makes no sense."""
    model, num_experts = _model(args.model), _num_experts(args)
    backend = _backend()
    path = args.dir / f"{model.name}.layer{checkpoint.layer_index(model)}.experts{num_experts}.safetensors"
    png = args.plot or FOLDER / "roofline.png"
    png.parent.mkdir(parents=True, exist_ok=True)
    where = report.machine("cpu") | {"threads": args.threads, "load_before": report.load_average()}
    say = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120).print
    say(
        f"[bold]{model.name}[/], layer {checkpoint.layer_index(model)}: {num_experts} of its "
        f"{model.num_experts} routed experts, hidden {model.hidden}, intermediate {model.intermediate}"
    )
    with demo_view.phases() as phase:
        is_new = _write_if_missing(path, model, num_experts, phase)
        used = memory.Usage()
        experts = _open(path, model, num_experts, is_new)
        with _threads(args.threads):
            runs = _run(experts, args.tokens, phase)
            facts = _facts(path, experts, is_new, used)
            timed, inputs = experts[:TIMED], [done.x for done in runs[:TIMED]]
            advance = phase("dequantize copies for the baselines", len(demo_race.BASELINES))
            lineup, absent = demo_race.baselines(timed, advance)
            for name, all_linears in lineup.items():
                for linears, done in zip(all_linears, runs, strict=False):
                    done.baselines[name] = {M: expert_mlp.mlp(x, linears).y for M, x in done.x.items()}
        try:
            errors = _verify(path, experts, runs, phase)
        except AssertionError as error:
            print(f"moela: wrong result: {error}", file=sys.stderr)
            return 1
        results = []
        lineup = {MINE: [expert_mlp.fp8(expert) for expert in timed], **lineup}
        with _threads(args.threads):
            clock, probes = clock_for("cpu"), probes_for("cpu", args.threads)
            for M in args.tokens:
                case = Case("fp8_gemm", model.name, "expert", "bf16", M, *expert_mlp.cost(M, experts[0]))
                advance = phase(f"race with {M} token{'s' * (M > 1)}", demo_race.num_samples(lineup, probes))
                results += demo_race.run(case, [x[M] for x in inputs], lineup, errors, clock, probes, advance)
    where |= {"load_after": report.load_average(), "clock": clock.name, "roofs": probes.source}
    plot(results, png, f"One expert of {model.name}, from a mapped FP8 checkpoint", describe(where))

    for line in (*facts, f"checked  {_num_checked(runs):,} numbers against float64, all within their bounds"):
        say(line)
    say()
    say(demo_view.results_table(results))
    say()
    for line in (*demo_view.notes(results, where, backend), *absent, f"plot: {png}"):
        say(line)
    return 0


# --- what was asked for ----------------------------------------------------------------------------------


def _model(name: str) -> ModelShape:
    if name in UNFIT:
        raise ValueError(
            f"--model: expected experts that are down(silu(gate) * up) in FP8 blocks, got {name}: "
            f"{UNFIT[name]}"
        )
    return MODELS[name]


def _num_experts(args: argparse.Namespace) -> int:
    model = MODELS[args.model]
    if args.experts is None:
        return max(1, min(SHARD_BYTES // checkpoint.shard_bytes(model, 1), model.num_experts))
    if args.experts > model.num_experts:
        raise ValueError(
            f"--experts: expected at most {model.num_experts}, those of {model.name}, got {args.experts}"
        )
    return args.experts


def _backend() -> str:
    device = torch.device("cpu")
    name = backends.pick("fp8_gemm", device)
    if reason := why_not_timed(name, "fp8_gemm", device):
        raise ValueError(f"backend {name}: {reason}")
    return name


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """torch and moela take `count` threads inside. Writing and checking take what torch takes."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --- the phases ------------------------------------------------------------------------------------------


def _write_if_missing(path: Path, model: ModelShape, num_experts: int, phase: Phase) -> bool:
    if path.exists():
        return False
    advance = phase(f"write {num_experts} experts to disk", num_experts)
    experts = (random_expert(model, index) for index in range(num_experts))
    checkpoint.write_shard(path, model, experts, num_experts, on_expert=lambda _: advance())
    return True


def random_expert(model: ModelShape, index: int) -> Expert:
    """Normal weights, quantized as a checkpoint is: every code is used, and no two experts are alike."""
    g = torch.Generator().manual_seed(index)
    H, intermediate = model.hidden, model.intermediate
    shapes = ((intermediate, H), (intermediate, H), (H, intermediate))
    return Expert(
        *(Weight(*moela.per_block_quant_fp8(WEIGHT_STD * torch.randn(s, generator=g))) for s in shapes)
    )


def _open(path: Path, model: ModelShape, num_experts: int, is_new: bool) -> list[Expert]:
    try:
        return checkpoint.open_shard(path, model, num_experts)
    except ValueError as error:
        raise ValueError(f"{error}" if is_new else f"{error}; delete it to have it written anew") from None


def _run(experts: Sequence[Expert], tokens: Sequence[int], phase: Phase) -> list[Run]:
    """moela on every expert."""
    advance = phase("run them straight from the file", len(experts))
    runs = []
    for index, expert in enumerate(experts):
        linears, x, steps = expert_mlp.fp8(expert), {}, {}
        for M in tokens if index < TIMED else [min(tokens)]:
            g = torch.Generator().manual_seed(M * len(experts) + index)
            x[M] = torch.randn(M, expert.gate.q.size(1), generator=g).bfloat16()  # [M, hidden]
            steps[M] = expert_mlp.mlp(x[M], linears)
        runs.append(Run(x, steps, {}))
        advance()
    return runs


def _verify(path: Path, experts: Sequence[Expert], runs: Sequence[Run], phase: Phase) -> Errors:
    """Raises AssertionError that names the expert that is out of bounds."""
    advance = phase("check against float64", len(experts))
    totals: dict[tuple[str, int], list[float]] = {}
    # Threads take an expert each. Sharing the many small operations, they would wait for each other after
    # every one: that took four times as long on two cores where others were computing too.
    workers = torch.get_num_threads()
    with _threads(1), ThreadPoolExecutor(workers) as pool:
        judged = pool.map(_verify_expert, count(), experts, runs)  # on an error it cancels what has not begun
        for index, squares in enumerate(judged):
            if not all(isfinite(exact) for _, exact in squares.values()):
                raise ValueError(f"{path}: expert {index}: expected finite weights, got NaN")
            for key, (error, exact) in squares.items():
                total = totals.setdefault(key, [0.0, 0.0])
                total[0] += error
                total[1] += exact
            advance()
    return {key: (error / exact) ** 0.5 if error else 0.0 for key, (error, exact) in totals.items()}


def _verify_expert(index: int, expert: Expert, done: Run) -> dict[tuple[str, int], tuple[float, float]]:
    """By contestant and number of tokens, the squared norms of the error and of the exact y."""
    x, steps = torch.cat([*done.x.values()]), expert_mlp.cat_steps([*done.steps.values()])
    others = {name: torch.cat([*y.values()]) for name, y in done.baselines.items()}
    try:
        exact = expert_mlp.verify(x, steps, expert, others)
    except AssertionError as error:
        raise AssertionError(f"expert {index}: {error}") from None
    rows = [len(part) for part in done.x.values()]
    return {
        (name, M): ((got - want).square().sum().item(), want.square().sum().item())
        for name, y in {MINE: steps.y, **others}.items()
        for M, got, want in zip(done.x, y.double().split(rows), exact.split(rows), strict=True)
    }


# --- what is said of them --------------------------------------------------------------------------------


def _facts(path: Path, experts: Sequence[Expert], is_new: bool, used: memory.Usage) -> list[str]:
    size = path.stat().st_size
    tensors = [t for expert in experts for weight in expert for t in weight]
    answers = [checkpoint.is_mapped(t, path) for t in tensors]
    mapped = f"all {len(tensors)} tensors are views of the file's pages, none is a copy"
    if None in answers:
        mapped = f"{len(tensors)} tensors; this system does not tell where they lie"
    elif not all(answers):
        mapped = f"{answers.count(False)} of {len(tensors)} tensors were copied"
    return [
        f"file     {path}, {size / 1e6:,.0f} MB, {'written' if is_new else 'was there'}",
        f"mapped   {mapped}",
        f"memory   {used.describe(size)}",
    ]


def _num_checked(runs: Sequence[Run]) -> int:
    mine = (t for done in runs for steps in done.steps.values() for t in steps)
    others = (y for done in runs for by_tokens in done.baselines.values() for y in by_tokens.values())
    return sum(t.numel() for t in chain(mine, others))
