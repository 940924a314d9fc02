"""What is done to rows, in C++ where they are in the memory of a CPU: csrc/ops/_ep_rows.cpp."""

import ctypes
import struct
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from moela import backends

_lib = torch.library.Library("moela_ep", "DEF")
_lib.define("gather_rows(Tensor source, Tensor rows, Tensor(a!) out) -> ()")
_lib.define(
    "place(Tensor wire, Tensor starts, Tensor counts, int[] offsets, int[] widths, Tensor[] like, "
    "Tensor(a!)[] into, Tensor? own_rows, int rank, int topk, int first_expert, int num_local_experts, "
    "int layout, int capacity, int most) -> (Tensor[], Tensor, Tensor, Tensor, Tensor, Tensor, int)"
)
_lib.define("num_places(Tensor counts, Tensor positions) -> (int, int)")
_lib.define("returned_rows(Tensor slots, Tensor wire, Tensor starts, Tensor counts) -> Tensor")


def is_compiled(t: Tensor) -> bool:
    """Whether the kernels of csrc are to be used for this tensor."""
    return t.is_cpu and _has_kernels()


@cache  # to read an environment variable takes as long as some of the kernels
def _has_kernels() -> bool:
    if backends.forced() not in (None, "cpu"):
        return False
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return backends.library("cpu").handle is not None and has_kernel("moela_ep::place", "CPU")


def gather_rows(source: Tensor, rows: Tensor, out: Tensor) -> None:
    """out[i] = source[rows[i]], zeros where rows[i] < 0.

    source: [N, w] uint8, out: [M, w] uint8, rows of both may be strided; rows: [M] int32, below N.
    """
    if is_compiled(out):
        torch.ops.moela_ep.gather_rows.default(source, rows, out)
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
    own: tuple[int, int] = (0, 0),
) -> None:
    """Row rows[i] of each column, [N, w] uint8, to a row of wire, [*, row_bytes] uint8, at its offset.

    The first counts[0] rows go to wire[starts[0]] and what follows, the next to wire[starts[1]], and so on.
    rows: [*] int32, below N; what is past sum(counts) is not read. own: (a group, a column); the group needs
    no column before that one.
    """
    if is_compiled(wire):
        _pack(columns, rows, offsets, counts, starts, wire, own)
        return
    groups = zip(rows[: sum(counts)].split(list(counts)), starts, strict=True)
    for g, (group, start) in enumerate(groups):
        first = own[1] if g == own[0] else 0
        for column, offset in zip(columns[first:], offsets[first:], strict=True):
            out = wire[start : start + group.numel(), offset : offset + column.size(1)]
            gather_rows(column, group, out)


def _pack(columns, rows, offsets, counts, starts, wire, own) -> None:
    """By ctypes: lists of tensors cost an op of torch five microseconds."""
    words = [wire.data_ptr(), *wire.shape, rows.data_ptr(), *rows.shape]
    words += (len(columns), len(counts), *own, *counts, *starts)
    for column, offset in zip(columns, offsets, strict=True):
        words += (column.data_ptr(), *column.shape, column.stride(0), offset)
    error = _pack_function()(_words(len(words)).pack(*words))
    if error:
        raise ValueError(f"pack: expected {error.decode()}")


@cache
def _pack_function() -> Callable[[bytes], bytes | None]:
    function = backends.library("cpu").handle.moela_ep_pack
    function.argtypes, function.restype = (ctypes.c_char_p,), ctypes.c_char_p
    return function


@cache
def _words(n: int) -> struct.Struct:
    return struct.Struct(f"={n}q")


def num_places(counts: Tensor, positions: Tensor) -> tuple[int, int]:
    """-> N, the sum of counts, and one more than the largest of the first N rows of positions; both int32."""
    if is_compiled(positions):
        return torch.ops.moela_ep.num_places.default(counts, positions)
    N = int(counts.sum())
    return N, int(positions[:N].max()) + 1 if positions[:N].numel() else 0


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
        return torch.ops.moela_ep.returned_rows.default(slots, wire, starts, counts)
    slots = slots.sort(dim=1).values  # [T, topk]; those of one rank are equal
    is_again = torch.nn.functional.pad(slots[:, 1:] == slots[:, :-1], (1, 0))
    rows = torch.cat([received_rows(starts, counts), starts.new_full((1,), -1)])  # the last one for slot -1
    return torch.where(is_again, -1, rows[slots])
