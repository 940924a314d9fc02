"""What the demo found, in the order in which it is told."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from moela.bench import checkpoint, memory
from moela.bench.demo_check import Comparison
from moela.bench.demo_model import DemoModel
from moela.bench.demo_profile import Part
from moela.bench.demo_race import Times
from moela.bench.roofline import Roofline

if TYPE_CHECKING:  # it is there if transformers is
    from moela.integrations.transformers.report import PatchReport

MINE = "moela FP8"
STOCK = {"stock fp32": torch.float32, "stock bf16": torch.bfloat16}  # the reference first
REFERENCE, SAME_DTYPE = STOCK


@dataclass
class Entry:
    """A contestant in the table. `mine` is what moela took in the same rounds, if it ran beside this one."""

    seconds_to_load: float
    taken: memory.Taken | None
    bytes_per_token: int
    times: Times
    mine: Times | None
    experts: tuple[str, str] | None = None  # implementations of prefill and decode


@dataclass
class Story:
    """What was found."""

    model: DemoModel
    folder: Path
    is_new: bool
    prompt_tokens: int = 0
    stock_refusal: str = ""
    patched: "PatchReport | None" = None
    generated: list[int] = field(default_factory=list)
    entries: dict[str, Entry] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    float32: Comparison | None = None  # of moela with float32 activations
    float32_bound: float = 0.0
    checks: dict[str, Comparison] = field(default_factory=dict)  # in bfloat16
    tokens: dict[str, list[int]] = field(default_factory=dict)
    prefill_parts: list[Part] = field(default_factory=list)
    decode_parts: list[Part] = field(default_factory=list)
    roofline: Roofline | None = None

    @property
    def file_bytes(self) -> int:
        return checkpoint.total_bytes(self.model.shards)
