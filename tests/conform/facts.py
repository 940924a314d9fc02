"""What the parts of the judge share: golden data, dumps, and the table of checks."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parents[1] / "golden"
CHECKS: dict[str, Callable[[Path], None]] = {}
SPANS = {"NONE": 16, "SW32": 32, "SW64": 64, "SW128": 128}


@cache
def golden(name: str) -> dict:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def check(function: Callable[[Path], None]) -> Callable[[Path], None]:
    CHECKS[function.__name__] = function
    return function


def dump(folder: Path, name: str, dtype: type = np.uint8) -> np.ndarray:
    return np.fromfile(folder / f"{name}.bin", dtype)


def equal(got: np.ndarray, expected: np.ndarray) -> None:
    expected = np.asarray(expected)
    assert got.shape == expected.shape, f"shape {got.shape}, expected {expected.shape}"
    wrong = np.argwhere(got != expected)
    if len(wrong):
        at = tuple(wrong[0])
        raise AssertionError(
            f"{len(wrong)} of {got.size} differ; first at {at}: {got[at]}, not {expected[at]}"
        )
