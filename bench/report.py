"""What a run found: records, the rule for calling something faster, and the JSON file."""

import json
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import moela
import torch
from moela import info
from moela.bench.roofline import Roofline
from moela.bench.timer import Timing

FORMAT = 1  # of the JSON file


@dataclass(frozen=True)
class Case:
    """What was computed: an op on a layer of a model, and what that costs whoever computes it."""

    op: str
    model: str
    layer: str
    dtype: str  # of the activations, or of the weights; of what is cast for casts
    tokens: int  # rows; 0 where the op has no tokens
    flops: int
    bytes: int
    # Of ops with experts, see moela.bench.routing. Files of before there were any have neither.
    routing: str = ""
    num_experts: int = 0  # held in memory
    batch: int = 1  # requests, of ops that read a cache of each

    @property
    def layer_key(self) -> tuple[str | int, ...]:
        """All but the number of tokens."""
        return self.op, self.model, self.layer, self.dtype, self.routing, self.num_experts, self.batch

    @property
    def key(self) -> tuple[tuple[str | int, ...], int]:
        return self.layer_key, self.tokens

    def __str__(self) -> str:
        routing = f" {self.routing} E={self.num_experts}" if self.routing else ""
        batch = f" B={self.batch}" if self.batch > 1 else ""
        tokens = f" M={self.tokens}" if self.tokens else ""
        return f"{self.op} {self.model}.{self.layer} {self.dtype}{routing}{batch}{tokens}"


@dataclass(frozen=True)
class Ratio:
    """How many times faster one contestant is than another. Only a difference if their p10..p90 are apart."""

    value: float
    is_difference: bool

    @staticmethod
    def of(mine: Timing, other: Timing) -> "Ratio":
        return Ratio(other.median / mine.median, mine.p90 < other.p10 or other.p90 < mine.p10)

    def __str__(self) -> str:
        return f"{self.value:.2f}x" if self.is_difference else "~"


@dataclass(frozen=True)
class Result:
    """One contestant on one case. Rates are the algorithm's: the same flops and bytes for each contestant."""

    case: Case
    contestant: str
    is_baseline: bool
    median_us: float
    p10_us: float
    p90_us: float
    error: float  # relative, of the whole result: |got - exact| / |exact| in the Frobenius norm
    roof_gbytes_per_s: float
    roof_gflops_per_s: float
    # Peak of what a call takes beyond its inputs, result included; None: not measured, or a file of before.
    extra_bytes: int | None = None

    @property
    def gbytes_per_s(self) -> float:
        return self.case.bytes / self.median_us * 1e-3

    @property
    def gflops_per_s(self) -> float:
        return self.case.flops / self.median_us * 1e-3

    @property
    def roofline_percent(self) -> float:
        """The least time that the roofs allow, in percent of the time taken."""
        return 100 * max(
            self.gbytes_per_s / self.roof_gbytes_per_s, self.gflops_per_s / self.roof_gflops_per_s
        )

    def ratio_to(self, other: "Result") -> Ratio:
        """How many times faster than `other`."""
        apart = self.p90_us < other.p10_us or other.p90_us < self.p10_us
        return Ratio(other.median_us / self.median_us, apart)


@dataclass(frozen=True)
class Wrong:
    """A contestant that gave a wrong result, and was not timed."""

    case: Case
    contestant: str
    reason: str


def result(
    case: Case,
    contestant: str,
    is_baseline: bool,
    timing: Timing,
    error: float,
    roofline: Roofline,
    extra_bytes: int | None = None,
) -> Result:
    return Result(
        case,
        contestant,
        is_baseline,
        *(1e6 * seconds for seconds in (timing.median, timing.p10, timing.p90)),
        error,
        roofline.read_bytes_per_s * 1e-9,
        roofline.flops_per_s * 1e-9,
        extra_bytes,
    )


def ratios(mine: Result, results: Sequence[Result]) -> dict[str, Ratio]:
    """By name, how many times faster `mine` is than each baseline of its case."""
    return {r.contestant: mine.ratio_to(r) for r in results if r.is_baseline and r.case == mine.case}


# --- where it was measured -------------------------------------------------------------------------------


def machine(device: torch.device | str) -> dict[str, Any]:
    """What a time depends on."""
    gpu = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else None
    return {
        "cpu": info.cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "isa": info.picked_isa() or "none",
        "gpu": gpu,
        "threads": torch.get_num_threads(),
    }


def load_average() -> float:
    """Processes that wanted to run during the last minute, ours included."""
    return round(os.getloadavg()[0], 2)


def versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": info.version_of("triton") or "none",
        "moela": moela.__version__,
    }


def commit() -> str:
    """The commit of the source tree that runs, with "-dirty" if it was changed; else "unknown"."""
    here = Path(__file__).resolve().parent

    def git(*args: str) -> str:
        done = subprocess.run(["git", "-C", here, *args], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # an environment may lie in some other repository
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


# --- the file --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """A run: where, what with, and what was found."""

    machine: dict[str, Any]
    versions: dict[str, str]
    commit: str
    command: str
    date: str
    results: list[Result]
    wrong: list[Wrong]


def report(where: dict[str, Any], results: list[Result], wrong: list[Wrong]) -> Report:
    command = shlex.join(["moela", *sys.argv[1:]])
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Report(where, versions(), commit(), command, date, results, wrong)


def write(found: Report, path: Path) -> None:
    """Write JSON. What follows from the other fields is in it too, for who reads it without moela."""
    data = {"format": FORMAT} | asdict(found)
    for row, r in zip(data["results"], found.results, strict=True):
        row |= {name: getattr(r, name) for name in ("gbytes_per_s", "gflops_per_s", "roofline_percent")}
        row["ratios"] = {} if r.is_baseline else {k: asdict(v) for k, v in ratios(r, found.results).items()}
    path.write_text(json.dumps(data, indent=1) + "\n")


def read(path: Path) -> Report:
    """Read what `write` wrote. Raises ValueError that says what is wrong with the file."""
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"{path}: expected a readable file, got {error.strerror}") from None
    except ValueError:
        raise ValueError(f"{path}: expected JSON of `moela bench --json`, got something else") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        got = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise ValueError(f"{path}: expected JSON of `moela bench --json` with format {FORMAT}, got {got}")
    try:
        rest = {f.name: data[f.name] for f in fields(Report) if f.name not in ("results", "wrong")}
        return Report(
            **rest | {"machine": dict(data["machine"]), "versions": dict(data["versions"])},
            results=[_record(Result, row) for row in data["results"]],
            wrong=[_record(Wrong, row) for row in data["wrong"]],
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected JSON of `moela bench --json`, got a record that is not one: {error}"
        ) from None


def _record(kind: type, row: dict[str, Any]) -> Any:
    values = {
        f.name: row[f.name]
        for f in fields(kind)
        if f.name != "case" and (f.name in row or f.default is MISSING)
    }
    times = [float(value) for name, value in values.items() if name.endswith("_us")]
    if not all(0 < t < math.inf for t in times):
        raise ValueError(f"times {times}")
    return kind(Case(**row["case"]), **values)
