"""Planner of expert parallelism: time, volume and memory of a dispatch and a combine, without a cluster.

>>> from moela.ep.planner import Case, load, plan
>>> from moela.shapes import MODELS
>>> plan(Case(MODELS["qwen3-235b-a22b"], load("dgx-h100"), nodes=8, gpus=8, tokens=4096)).limit
'between'

`model` has the formulas, `routing` draws who gets the rows, `topology` the machines, `memory` the buffers,
`calibration` puts measured constants in, `planning` says what limits and what would help. `moela plan-ep` is
the command.
"""

from moela.ep.planner.calibration import calibrate
from moela.ep.planner.planning import Case, Plan, plan
from moela.ep.planner.report import text
from moela.ep.planner.topology import Topology, load

__all__ = ["Case", "Plan", "Topology", "calibrate", "load", "plan", "text"]
