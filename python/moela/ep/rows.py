"""The one copy of expert parallelism: rows from where they are to where they go."""

from functools import cache

import torch
from torch import Tensor

from moela import backends

_lib = torch.library.Library("moela_ep", "DEF")
_lib.define("gather_rows(Tensor source, Tensor rows, Tensor(a!) out) -> ()")


def gather_rows(source: Tensor, rows: Tensor, out: Tensor) -> None:
    """out[i] = source[rows[i]], zeros where rows[i] < 0.

    source: [N, w] uint8, out: [M, w] uint8, rows of both may be strided; rows: [M] int32, below N.
    """
    if out.device.type == "cpu" and backends.forced() in (None, "cpu") and _is_compiled():
        torch.ops.moela_ep.gather_rows(source, rows, out)
        return
    is_row = rows >= 0
    out[is_row] = source[rows[is_row]]
    out[~is_row] = 0


@cache
def _is_compiled() -> bool:
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return backends.library("cpu").handle is not None and has_kernel("moela_ep::gather_rows", "CPU")
