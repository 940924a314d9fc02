"""The model of the demo through transformers: with moela, and what happens without."""

import logging
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import moela
import torch
from moela.bench import checkpoint
from moela.bench.demo_model import DemoModel
from torch import nn

if TYPE_CHECKING:
    from moela.integrations.transformers.report import PatchReport

_AN_ERROR = re.compile(r"\w+Error: ")


def prepare_transformers() -> None:
    """Without its progress bars, and as it is without moela. ValueError where it is missing or too old."""
    try:
        moela.disable_cpu_fp8()
    except ImportError as error:
        raise ValueError(str(error).partition(": ")[2]) from None
    from transformers.utils import logging as its_logging

    its_logging.disable_progress_bar()


def load(folder: Path, dtype: torch.dtype) -> tuple[nn.Module, "PatchReport"]:
    """The model, its weights in the FP8 of the checkpoint, and what `moela.patch` says of it."""
    from transformers import AutoModelForCausalLM

    moela.enable_cpu_fp8()
    try:
        net = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    finally:
        moela.disable_cpu_fp8()
    with redirect_stdout(StringIO()):  # it prints its report
        report = moela.patch(net)
    return net.eval(), report


def why_stock_does_not_load(model: DemoModel) -> str:
    """What transformers alone says of such a checkpoint on a CPU; of a narrow one, for that is quick."""
    import transformers

    mla = replace(model.shape.mla, num_heads=2, q_lora_rank=128)
    widths = dict.fromkeys(("intermediate", "shared_intermediate", "dense_intermediate"), 128)
    small = DemoModel(replace(model.shape, hidden=256, mla=mla, **widths), 128)
    with tempfile.TemporaryDirectory() as there, _logged() as lines:
        folder = Path(there) / small.name
        checkpoint.write(folder, small.config, small.shards, small.tensor, lambda: None)
        try:
            transformers.AutoModelForCausalLM.from_pretrained(folder)
        except Exception as error:
            # The reason is in a report that it logs, where it says so.
            own = f"{type(error).__name__}: {error}".splitlines()[0]
            said = next((line for line in reversed(lines) if _AN_ERROR.match(line)), own)
        else:
            said = "loads it by dequantizing all of it to bfloat16"
    return f"transformers {transformers.__version__} alone: {said}"


@contextmanager
def _logged() -> Iterator[list[str]]:
    """Inside, what transformers logs goes into the list, line by line."""
    lines: list[str] = []
    collector = logging.Handler()
    collector.emit = lambda record: lines.extend(record.getMessage().splitlines())
    logger = logging.getLogger("transformers")
    before, logger.handlers = logger.handlers, [collector]
    try:
        yield lines
    finally:
        logger.handlers = before
