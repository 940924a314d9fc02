"""The hardware table of README.md, from the results that are committed.

    python tools/hardware_table.py    # rewrites it

What no file of bench/results shows a run of says "not yet run on hardware".
"""

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- hardware table: tools/hardware_table.py -->\n", "<!-- end of the hardware table -->\n"
NOT_YET = "not yet run on hardware"
TRITON = "right in Triton's interpreter, compiled ahead of time for each target"
CUDA = "right under our emulator with race detection, compiled, its machine code checked"


def cuda_ops(root: Path = ROOT) -> list[str]:
    """Ops with a kernel of ours for Hopper."""
    launched = {path.name.removesuffix("_cuda.cpp") for path in (root / "csrc/ops").glob("*_cuda.cpp")}
    return sorted(launched | {path.parent.name for path in (root / "csrc/cuda").glob("*/*_sm90.cu")})


def results(root: Path = ROOT) -> list[dict[str, Any]]:
    """The committed runs of the bench, the newest first."""
    found = [json.loads(path.read_text()) for path in (root / "bench/results").glob("*.json")]
    return sorted(found, key=lambda run: run["date"], reverse=True)


def measured(
    runs: list[dict[str, Any]], contestant: str, op: str | None = None, isa: str | None = None
) -> str:
    """Where a backend was measured last, or ""."""
    for run in runs:
        machine = run["machine"]
        names = {r["contestant"] for r in run.get("results", []) if op in (None, r["case"]["op"])}
        on_gpu = contestant != "cpu"
        if contestant in names and bool(machine["gpu"]) == on_gpu and isa in (None, machine["isa"]):
            return f"measured on {machine['gpu'] if on_gpu else machine['cpu']}, {run['date'][:10]}"
    return ""


def verified_isas(root: Path = ROOT) -> dict[str, bool]:
    """Instruction set -> whether the test-suite has run on it, as csrc/cpu/isa.cpp says."""
    table = re.findall(r'\{"(\w+)", [^}]*?, (true|false)\},', (root / "csrc/cpu/isa.cpp").read_text())
    return {name: flag == "true" for name, flag in table}


def table(root: Path = ROOT) -> str:
    runs = results(root)
    rows = []
    for isa, is_verified in verified_isas(root).items():
        tested = "tested" if is_verified else f"the bits of scalar in emulation; {NOT_YET}"
        rows.append((f"CPU: {isa}", "; ".join(filter(None, [tested, measured(runs, "cpu", isa=isa)]))))
    rows.append(
        ("Triton: sm_80 to sm_120, gfx942, gfx950", f"{TRITON}; {measured(runs, 'triton') or NOT_YET}")
    )
    for op in cuda_ops(root):
        state = measured(runs, "cuda", op) or f"{NOT_YET}, so used by name only"
        rows.append((f"CUDA sm_90a: `{op}`", f"{CUDA}; {state}"))
    return "| where | state |\n| --- | --- |\n" + "".join(f"| {where} | {state} |\n" for where, state in rows)


def with_table(readme: str, new: str) -> str:
    before, rest = readme.split(BEGIN)
    return before + BEGIN + new + END + rest.split(END)[1]


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(with_table(path.read_text(), table()))
