"""`moela demo`: a DeepSeek-V3-architecture model in FP8, from a checkpoint on disk to generated tokens.

Write the checkpoint in the published layout, load it through transformers with moela, hold its logits against
the dequantized model in float32, race it against stock transformers in bfloat16 and float32, and show where
its time goes.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from moela import backends
from moela.bench import checkpoint, demo_loading, demo_plot, demo_stage, demo_view, report
from moela.bench.choices import whole_number
from moela.bench.commands import describe
from moela.bench.demo_model import KEPT_GROUPS, NUM_GROUPS, DemoModel
from moela.bench.demo_stage import WrongResultError
from moela.bench.demo_story import Story
from moela.bench.demo_view import Phase
from moela.bench.suite import why_not_timed
from moela.bench.timer import clock_for
from moela.shapes import MODELS, ModelShape

FOLDER = Path("out/demo")
SHAPE = MODELS["deepseek-v3"]
VOCAB = 4096
PLOT = "speed.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    def option(name: str, default: object, parse: Callable[[str], object], what: str) -> None:
        parser.add_argument(f"--{name}", default=default, type=parse, metavar="…", help=what)

    option("layers", 2, whole_number(2, 61), "of the model, the first of them dense (default: 2)")
    option("experts", 16, whole_number(1, 256), f"of a layer, a multiple of {NUM_GROUPS} (default: 16)")
    option("prompt-tokens", 256, whole_number(1, 4096), "(default: 256)")
    option("new-tokens", 16, whole_number(1, 1024), "(default: 16)")
    threads = torch.get_num_threads()
    what = f"(default: {threads}); on one, CPU time is measured, which others disturb less"
    option("threads", threads, whole_number(1, os.cpu_count() or 1), what)
    option("dir", FOLDER, Path, f"keeps the checkpoint for the next time (default: {FOLDER})")


def run(args: argparse.Namespace) -> int:
    """The whole demo. 1 if a result was wrong; ValueError where what was asked for makes no sense."""
    model = DemoModel(_scaled(SHAPE, args), VOCAB)
    demo_loading.prepare_transformers()  # its absence is said before anything is written
    backend = _backend()
    folder = args.dir / model.name
    where = report.machine("cpu") | {"threads": args.threads, "load_before": report.load_average()}
    with demo_view.phases() as phase, _threads(args.threads):
        where["clock"] = clock_for("cpu").name
        story = Story(model, folder, _write_if_missing(folder, model, phase))
        try:
            demo_stage.tell(story, args.prompt_tokens, args.new_tokens, phase)
        except WrongResultError as error:
            print(f"moela: wrong result: {error}", file=sys.stderr)
            return 1
    where |= {"load_after": report.load_average()}
    demo_plot.plot(story, args.dir / PLOT, describe(where))
    demo_view.show(story, where, backend, args.dir / PLOT)
    return 0


def _scaled(full: ModelShape, args: argparse.Namespace) -> ModelShape:
    if args.experts % NUM_GROUPS or args.experts * KEPT_GROUPS // NUM_GROUPS < full.topk:
        least = -(-full.topk // KEPT_GROUPS) * NUM_GROUPS
        raise ValueError(
            f"--experts: expected a multiple of {NUM_GROUPS} from {least} on, as a token's {full.topk} come "
            f"from {KEPT_GROUPS} of {NUM_GROUPS} groups, got {args.experts}"
        )
    return replace(full, num_layers=args.layers, num_dense_layers=1, num_experts=args.experts)


def _backend() -> str:
    device = torch.device("cpu")
    name = backends.pick("fp8_gemm", device)
    if reason := why_not_timed(name, "fp8_gemm", device):
        raise ValueError(f"backend {name}: {reason}")
    return name


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """torch and moela take `count` threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _write_if_missing(folder: Path, model: DemoModel, phase: Phase) -> bool:
    if folder.exists():
        try:
            checkpoint.check(folder, model.config, model.shards)
        except ValueError as error:
            raise ValueError(f"{error}; delete {folder} to have it written anew") from None
        return False
    advance = phase("write the checkpoint", len(model.specs))
    checkpoint.write(folder, model.config, model.shards, model.tensor, advance)
    return True
