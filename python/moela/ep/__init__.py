"""Expert parallelism: the experts of a layer are spread over ranks, and tokens travel to them.

`EpBuffer` is what the ranks set up; the ops `moela.ep_dispatch` and `moela.ep_combine` take its name.
"""

from moela.ep.buffer import EpBuffer
from moela.ep.errors import EpError, EpPeerLost, EpTimeout
from moela.ep.local import LocalGroup, run_local
from moela.ep.placement import expert_range

__all__ = [
    "EpBuffer",
    "EpError",
    "EpPeerLost",
    "EpTimeout",
    "LocalGroup",
    "expert_range",
    "run_local",
]
