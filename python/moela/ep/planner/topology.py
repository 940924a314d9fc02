"""Machines as data: the constants of the model, each with its source and whether it is published, assumed or
measured.

A file of topologies/ names what stands in ``defaults.json`` only where it differs. Units in the files are
those of data sheets; `Topology` gives SI.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

KINDS = ("published", "assumed", "measured")
FOLDER = Path(__file__).parent / "topologies"
DEFAULTS = "defaults"
# Symbol: what it is, its unit in the files, and that in SI.
SYMBOLS = {
    "b_nv": ("rate inside a node, a GPU and direction", "GB/s", 1e9),
    "b_ib": ("rate between nodes, a GPU and direction", "GB/s", 1e9),
    "sigma": ("share of these rates that is reached", "", 1),
    "t0": ("hierarchical exchange of no bytes", "us", 1e-6),
    "alpha": ("direct exchange of no bytes", "us", 1e-6),
    "tau": ("a message, of the network card of a GPU", "ns", 1e-9),
    "signal": ("a signal to a rank of another node", "ns", 1e-9),
    "num_sms": ("SMs of a GPU", "", 1),
    "sm_read": ("what an SM reads", "GB/s", 1e9),
    "sm_write": ("what an SM writes", "GB/s", 1e9),
    "memory": ("memory of a GPU", "GB", 1e9),
}


@dataclass(frozen=True)
class Figure:
    """A number of a data sheet, in its unit there."""

    value: float
    kind: str  # of KINDS
    source: str


@dataclass(frozen=True)
class Topology:
    """Nodes of up to `domain` GPUs. ``topology["b_ib"]`` is a figure in SI, if it `has` one."""

    name: str
    about: str
    domain: int  # GPUs that reach each other by the link inside
    inside: str  # names of the links
    between: str | None
    figures: Mapping[str, Figure]

    def has(self, symbol: str) -> bool:
        return symbol in self.figures

    def __getitem__(self, symbol: str) -> float:
        return self.figures[symbol].value * SYMBOLS[symbol][2]

    def with_figures(self, figures: Mapping[str, Figure]) -> "Topology":
        return replace(self, figures={**self.figures, **figures})


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.json") if path.stem != DEFAULTS)


def load(name: str) -> Topology:
    """A preset by its name."""
    if name not in names():
        raise ValueError(f"topology: expected one of {', '.join(names())}, got {name!r}")
    data = json.loads((FOLDER / f"{name}.json").read_text())
    common = json.loads((FOLDER / f"{DEFAULTS}.json").read_text())
    figures = {k: Figure(**v) for k, v in (common["figures"] | data.pop("figures")).items() if v is not None}
    return Topology(name=name, figures=figures, **data)
