"""Triton kernels of ep_dispatch on devices: send, place, receive, over memory that all ranks of a node see.

Copies are of integers, so no bit of a row changes; a place follows from slots, counts and ids, never from the
order in which blocks run. Every kernel finds the epoch in device memory and reads nothing on the host: a
graph can be captured, and replayed. Definition: tests/ep/device_definition.py; protocol: _ep.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from moela.ep.device import DeviceExchange
from moela.kernels import _ep
from moela.kernels._ep_place import place as place
from torch import Tensor


@dataclass(frozen=True)
class Plan:
    BLOCKS: tuple[int, ...]  # by column, elements that a block moves at once
    BLOCK_K: int


def plan(columns: Sequence[_ep.Column], topk: int) -> Plan:
    """Bound: NVLink. A block has 8 KB of a row under way: 132 blocks have the 0.9 MB that 450 GB/s with 2 us
    from a store to its end need. Four warps of at most 80 registers: where ranks that wait for each other
    share a device, the blocks of six run at once.
    """
    pad = triton.next_power_of_2
    blocks = (min(pad(column.size), 128 * column.ptr.itemsize) for column in columns)
    return Plan(BLOCKS=tuple(blocks), BLOCK_K=pad(max(topk, 1)))


@triton.jit
def send_column(column, t, addresses, number, n, BLOCK: tl.constexpr):
    """Row t of a column, and zeros up to a multiple of 16 bytes, to the n wire rows whose addresses
    [BLOCK_K] have a number."""
    ELEMENT: tl.constexpr = column.ptr.dtype.element_ty
    UNIT: tl.constexpr = 128 // ELEMENT.primitive_bitwidth
    padded = tl.cdiv(column.size, UNIT) * UNIT
    from_ptr = column.ptr + tl.cast(t, tl.int64) * column.stride
    for start in range(0, padded, BLOCK):
        place = start + tl.arange(0, BLOCK)
        piece = tl.load(from_ptr + place, mask=place < column.size, other=0)
        for i in range(n):
            wire_ptr = _ep.wire_pointer(_ep.take(addresses, number, i), ELEMENT)
            tl.store(wire_ptr + column.offset + place, piece, mask=place < padded)


@triton.jit
def receive_column(column, wire, places, number, n, BLOCK: tl.constexpr):
    """A column of the wire row at this address to the n of places [BLOCK_K] that have a number."""
    from_ptr = _ep.wire_pointer(wire, column.ptr.dtype.element_ty) + column.offset
    for start in range(0, column.size, BLOCK):
        place = start + tl.arange(0, BLOCK)
        piece = tl.load(from_ptr + place, mask=place < column.size, other=0)
        for i in range(n):
            to = _ep.take(places, number, i).to(tl.int64)
            tl.store(column.ptr + to * column.stride + place, piece, mask=place < column.size)


@triton.jit
def clear_column(column, row, BLOCK: tl.constexpr):
    to_ptr = column.ptr + tl.cast(row, tl.int64) * column.stride
    for start in range(0, column.size, BLOCK):
        place = start + tl.arange(0, BLOCK)
        zeros = tl.zeros([BLOCK], column.ptr.dtype.element_ty)
        tl.store(to_ptr + place, zeros, mask=place < column.size)


@triton.jit
def _ep_send_kernel(
    x, columns, slots_ptr, counts_ptr,
    T, topk, is_abort,
    RANKS: tl.constexpr, BLOCKS: tl.constexpr, BLOCK_K: tl.constexpr,
    CLOCK: tl.constexpr, THREADS: tl.constexpr,
):  # fmt: skip
    """One program stores the wire rows of tokens first, first + step, ... at the ranks that they go to; the
    last one to end tells these.

    Grid: any, of one dimension. Invariants: a token is loaded once, and goes to each of its ranks once; where
    a rank has not released its memory nothing is stored, and the others are told that the epoch is over.
    """
    epoch = tl.load(x.epochs) + 1
    is_open, is_well = _ep.wait_released(x, epoch, RANKS, CLOCK, THREADS)
    ranks = tl.arange(0, RANKS)
    ends = tl.cumsum(tl.load(counts_ptr + ranks, mask=ranks < x.num_ranks, other=0), 0)
    mine = _ep.rows_at(x, epoch, x.rank)
    k = tl.arange(0, BLOCK_K)
    for t in range(tl.program_id(0), tl.where(is_well, T, 0), tl.num_programs(0)):
        slots = tl.load(slots_ptr + tl.cast(t, tl.int64) * topk + k, mask=k < topk, other=-1)
        number = _ep.number_slots(slots, k)
        rank, row = _ep.find_rows(slots, ends)
        bases = tl.load(x.bases + rank, mask=number >= 0, other=0)
        addresses = bases + mine + row.to(tl.int64) * x.row_bytes
        n = tl.max(number, 0) + 1
        for i in tl.static_range(len(columns)):
            send_column(columns[i], t, addresses, number, n, BLOCKS[i])
    is_last, is_well = _ep.end_block(x.done, is_well, CLOCK, THREADS)
    if is_last:
        is_over = (is_abort != 0) | (is_well == 0)
        _ep.raise_arrived(x, epoch, counts_ptr, is_open, is_over, RANKS, CLOCK, THREADS)


@triton.jit
def _ep_receive_kernel(
    x, columns, positions_ptr, experts_ptr, ids_ptr, weights_ptr, recv_counts_ptr,
    ids_offset, weights_offset, topk, first_expert, num_local_experts, capacity,
    LAYOUT: tl.constexpr, HAS_IDS: tl.constexpr, RANKS: tl.constexpr, BLOCKS: tl.constexpr,
    BLOCK_K: tl.constexpr, CLOCK: tl.constexpr, THREADS: tl.constexpr,
):  # fmt: skip
    """One program copies received rows first, first + step, ... to their places, and clears places that no
    row has; the last one to end gives the memory back.

    Grid: any, of one dimension. Invariants: a received row is loaded once; a place has one writer.
    """
    epoch = tl.load(x.epochs + 1) + 1
    counts, _is_taken, is_here = _ep.wait_arrived(x, epoch, None, RANKS, CLOCK, THREADS)
    ends = tl.cumsum(counts, 0)
    total = tl.sum(counts, 0)
    first, step = tl.program_id(0), tl.num_programs(0)
    rows = total
    if LAYOUT == "compact":
        rows = tl.minimum(total, capacity)
    if first == 0:
        ranks = tl.arange(0, RANKS)
        tl.store(recv_counts_ptr + ranks, counts, mask=ranks < x.num_ranks)
        if rows < total:
            _ep.report_capacity(x, epoch)

    base = tl.load(x.bases + x.rank)
    k = tl.arange(0, BLOCK_K)
    for row in range(first, rows, step):
        source, of_source = _ep.find_row(row, ends)
        wire = base + _ep.rows_at(x, epoch, source) + of_source.to(tl.int64) * x.row_bytes
        pair = tl.cast(row, tl.int64) * topk + k
        if LAYOUT == "compact":
            places, number = tl.full([BLOCK_K], row, tl.int32), tl.where(k == 0, 0, -1)
            if HAS_IDS:
                ids = tl.load((wire + ids_offset).to(tl.pointer_type(tl.int32)) + k, mask=k < topk, other=-1)
                ids -= first_expert
                is_local = (ids >= 0) & (ids < num_local_experts)
                weights = tl.load((wire + weights_offset).to(tl.pointer_type(tl.int32)) + k, mask=k < topk)
                tl.store(ids_ptr + pair, tl.where(is_local, ids, -1), mask=k < topk)
                tl.store(weights_ptr + pair, tl.where(is_local, weights, 0), mask=k < topk)
        else:
            places = tl.load(positions_ptr + pair, mask=k < topk, other=-1)
            is_place = (places >= 0).to(tl.int32)
            number = tl.where(is_place != 0, tl.cumsum(is_place, 0) - 1, -1)
            weights_at = (wire + weights_offset).to(tl.pointer_type(tl.int32)) + k
            tl.store(weights_ptr + places, tl.load(weights_at, mask=places >= 0), mask=places >= 0)
        n = tl.max(number, 0) + 1
        for i in tl.static_range(len(columns)):
            receive_column(columns[i], wire, places, number, n, BLOCKS[i])

    for group in range(num_local_experts if LAYOUT == "masked" else 1):
        used = total
        if LAYOUT == "expert":
            used = tl.load(experts_ptr + num_local_experts)
        if LAYOUT == "masked":
            used = tl.load(experts_ptr + group)
        for row in range(group * capacity + used + first, (group + 1) * capacity, step):
            for i in tl.static_range(len(columns)):
                clear_column(columns[i], row, BLOCKS[i])
            if LAYOUT != "compact":
                tl.store(weights_ptr + row, 0)
            elif HAS_IDS:
                pair = tl.cast(row, tl.int64) * topk + k
                tl.store(ids_ptr + pair, tl.full([BLOCK_K], -1, tl.int32), mask=k < topk)
                tl.store(weights_ptr + pair, tl.zeros([BLOCK_K], tl.int32), mask=k < topk)

    is_last, _is_well = _ep.end_block(x.done + 1, True, CLOCK, THREADS)
    if is_last:
        _ep.raise_released(x, epoch, is_here, RANKS)


def send(
    exchange: DeviceExchange,
    columns: Sequence[Tensor],
    offsets: Sequence[int],
    slots: Tensor,
    counts: Tensor,
    is_abort: bool,
) -> None:
    (T, topk), sources = slots.shape, _ep.columns_of(columns, offsets)
    p = plan(sources, topk)
    _ep_send_kernel[_ep.grid_of(exchange, T)](
        exchange, sources, slots, counts, T, topk, int(is_abort),
        BLOCKS=p.BLOCKS, BLOCK_K=p.BLOCK_K, **_ep.options(exchange),
    )  # fmt: skip


def receive(
    exchange: DeviceExchange,
    layout: str,
    outs: Sequence[Tensor],
    offsets: Sequence[int],
    ids_offset: int,
    weights_offset: int,
    topk: int,
    first_expert: int,
    num_local_experts: int,
    positions: Tensor | None,
    experts: Tensor | None,
    topk_ids: Tensor | None,
    topk_weights: Tensor | None,
    recv_counts: Tensor,
    capacity: int,
) -> None:
    targets = _ep.columns_of(outs, offsets)
    p = plan(targets, topk)
    places = capacity * num_local_experts if layout == "masked" else capacity
    weights = None if topk_weights is None else topk_weights.view(torch.int32)  # NaN payloads stay
    _ep_receive_kernel[_ep.grid_of(exchange, places)](
        exchange, targets, positions, experts, topk_ids, weights, recv_counts,
        ids_offset, weights_offset, topk, first_expert, num_local_experts, capacity,
        LAYOUT=layout, HAS_IDS=topk > 0, BLOCKS=p.BLOCKS, BLOCK_K=p.BLOCK_K, **_ep.options(exchange),
    )  # fmt: skip
