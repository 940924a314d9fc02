"""What is done to rows, in C++ where they are in the memory of a CPU: csrc/ops/_ep_rows.cpp."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from moela import backends

_lib = torch.library.Library("moela_ep", "DEF")
_lib.define("gather_rows(Tensor source, Tensor rows, Tensor(a!) out) -> ()")
_lib.define(
    "pack(Tensor[] columns, Tensor rows, int[] offsets, int[] counts, int[] starts, Tensor(a!) wire) -> ()"
)
_lib.define(
    "place(Tensor wire, Tensor starts, Tensor counts, int ids_at, int weights_at, int topk, "
    "int first_expert, int num_local_experts, int layout, int capacity, int most) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, int)"
)
_lib.define("returned_rows(Tensor slots, Tensor wire, Tensor starts, Tensor counts) -> Tensor")


def is_compiled(t: Tensor) -> bool:
    """Whether the kernels of csrc are to be used for this tensor."""
    return t.device.type == "cpu" and backends.forced() in (None, "cpu") and _has_kernels()


@cache
def _has_kernels() -> bool:
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return backends.library("cpu").handle is not None and has_kernel("moela_ep::pack", "CPU")


def gather_rows(source: Tensor, rows: Tensor, out: Tensor) -> None:
    """out[i] = source[rows[i]], zeros where rows[i] < 0.

    source: [N, w] uint8, out: [M, w] uint8, rows of both may be strided; rows: [M] int32, below N.
    """
    if is_compiled(out):
        torch.ops.moela_ep.gather_rows(source, rows, out)
        return
    if source.size(0) == 0:
        out.zero_()
        return
    # Where this runs on a device nothing waits for it.
    out.copy_(torch.where((rows >= 0)[:, None], source[rows.clamp(min=0)], 0))


def pack(
    columns: Sequence[Tensor],
    rows: Tensor,
    offsets: Sequence[int],
    counts: Sequence[int],
    starts: Sequence[int],
    wire: Tensor,
) -> None:
    """Row rows[i] of each column, [N, w] uint8, to a row of wire, [*, row_bytes] uint8, at its offset.

    The first counts[0] rows go to wire[starts[0]] and what follows, the next to wire[starts[1]], and so on.
    rows: [*] int32, below N; what is past sum(counts) is not read.
    """
    if is_compiled(wire):
        torch.ops.moela_ep.pack(columns, rows, offsets, counts, starts, wire)
        return
    groups = zip(rows[: sum(counts)].split(list(counts)), starts, strict=True)
    for group, start in groups:
        for column, offset in zip(columns, offsets, strict=True):
            out = wire[start : start + group.numel(), offset : offset + column.size(1)]
            gather_rows(column, group, out)


def received_rows(starts: Tensor, counts: Tensor) -> Tensor:
    """[R], [R] -> [N] int32: in received order, the row of wire."""
    pairs = zip(starts.tolist(), counts.tolist(), strict=True)
    ranges = [torch.arange(start, start + n, dtype=torch.int32, device=starts.device) for start, n in pairs]
    return torch.cat(ranges)


def returned_rows(slots: Tensor, wire: Tensor, starts: Tensor, counts: Tensor) -> Tensor:
    """Where in wire what was sent as slots [T, topk] int32 came back to, each row once, the rest -1.

    The rows of a token are in the order of the ranks, as slots are.
    """
    if is_compiled(wire):
        return torch.ops.moela_ep.returned_rows(slots, wire, starts, counts)
    slots = slots.sort(dim=1).values  # [T, topk]; those of one rank are equal
    is_again = torch.nn.functional.pad(slots[:, 1:] == slots[:, :-1], (1, 0))
    rows = torch.cat([received_rows(starts, counts), starts.new_full((1,), -1)])  # the last one for slot -1
    return torch.where(is_again, -1, rows[slots])
