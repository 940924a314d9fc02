"""Prepares the inputs of the conformance program and judges its dumps against tests/golden.

    python tests/conform/judge.py prepare FOLDER
    python tests/conform/judge.py check FOLDER

Needs numpy only. Every check is a function whose name says what holds; it takes the folder of the dumps.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

import judge_copies  # noqa: F401  registers its checks
import judge_maps  # noqa: F401  registers its checks
import numpy as np
from facts import CHECKS
from judge_mma import descriptor_arguments, mma_cases
from judge_threads import approx_inputs, convert_inputs, width_inputs


def prepare(folder: Path) -> None:
    inputs = folder / "in"
    inputs.mkdir(parents=True, exist_ok=True)
    convert_inputs().tofile(inputs / "convert.f32")
    approx_inputs().tofile(inputs / "approx.f32")
    width_inputs().tofile(inputs / "widths")
    descriptor_arguments().tofile(inputs / "descriptors")
    lines = []
    for case in mma_cases():
        (inputs / f"{case.name}.a").write_bytes(case.a)
        (inputs / f"{case.name}.b").write_bytes(case.b)
        np.array(case.descriptors, np.uint64).tofile(inputs / f"{case.name}.descriptors")
        flags = (int(f) for f in (case.transpose_a, case.transpose_b, case.registers))
        lines.append(" ".join(map(str, (case.name, case.input, case.n, *flags, len(case.descriptors) // 2))))
    (inputs / "mma.txt").write_text("\n".join(lines) + "\n")


def failures(folder: Path, names: Iterable[str] = CHECKS) -> dict[str, str]:
    """Check -> what is wrong, for those that fail."""
    found = {}
    for name in names:
        try:
            CHECKS[name](folder)
        except (AssertionError, OSError, ValueError, IndexError) as error:
            found[name] = str(error)
    return found


if __name__ == "__main__":
    command, folder = sys.argv[1], Path(sys.argv[2])
    if command == "prepare":
        prepare(folder)
    else:
        wrong = failures(folder)
        for name, error in wrong.items():
            sys.stdout.write(f"FAILED {name}: {error}\n")
        sys.stdout.write(f"{len(CHECKS) - len(wrong)} passed, {len(wrong)} failed\n")
        sys.exit(bool(wrong))
