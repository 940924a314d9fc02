"""Expert parallelism: the experts of a layer are spread over ranks, and tokens travel to them.

`EpBuffer` is what the ranks set up; the ops `moela.ep_dispatch` and `moela.ep_combine` take its name.
"""

import torch

from moela.ep.buffer import EpBuffer, buffer_of
from moela.ep.errors import EpError, EpPeerLost, EpTimeout
from moela.ep.local import LocalGroup, run_local
from moela.ep.placement import expert_range

__all__ = [
    "EpBuffer",
    "EpError",
    "EpPeerLost",
    "EpTimeout",
    "LocalGroup",
    "buffer_of",
    "expert_range",
    "must_save_ops",
    "run_local",
]


def must_save_ops() -> list:
    """The ops that activation checkpointing must not repeat: for create_selective_checkpoint_contexts.

    A recomputed exchange is right where every rank repeats it, but travels twice.
    """
    from moela.ops import DISTRIBUTED  # the ops import this package

    return [getattr(torch.ops.moela, name).default for name in DISTRIBUTED if not name.endswith("_out")]
