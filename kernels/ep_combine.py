"""Triton kernels of ep_combine on devices: what sends rows back where a dispatch brought them from, and what
adds up those that come back.

Sums are float32, in the order of k and of the ranks, products and sums rounded separately, as the definition
says (compiled without fused multiply-adds). Definition: tests/ep/device_definition.py; protocol: _ep.py.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from moela.ep.device import DeviceExchange
from moela.kernels import _ep, _fp8
from torch import Tensor


@dataclass(frozen=True)
class Plan:
    BLOCK: int  # columns that a block adds up at once
    BLOCK_K: int


def plan(H: int, itemsize: int, topk: int) -> Plan:
    """Bound: NVLink for what sends, memory for what receives. Sums stay in registers, so pieces of 4 KB are
    the outer loop, and a block has those of four rows, 16 KB, under way at once.
    """
    pad = triton.next_power_of_2
    return Plan(BLOCK=min(pad(max(H, 1)), 4096 // itemsize), BLOCK_K=pad(max(topk, 1)))


@triton.jit
def load_place(y_ptr, weights_ptr, positions, number, i, col, H, stride_yp, CLOCK: tl.constexpr):
    """Columns of the row of y whose position [BLOCK_K] has number i, times its weight; 0 if none has, which
    leaves every sum as it is: none is -0."""
    place = _ep.take(positions + 1, number, i) - 1
    y = tl.load(
        y_ptr + place.to(tl.int64) * stride_yp + col, mask=col < tl.where(place >= 0, H, 0), other=0.0
    )
    term = _fp8.to_float32(y, CLOCK == "host")
    if weights_ptr is not None:
        term *= tl.load(weights_ptr + place, mask=place >= 0, other=0.0)
    return term


@triton.jit
def load_sent(addresses, number, i, col, H, ELEMENT: tl.constexpr, CLOCK: tl.constexpr):
    """Columns of the wire row whose address [BLOCK_K] has number i; 0 if none has, or the address is 0."""
    address = _ep.take(addresses, number, i)
    wire_ptr = _ep.wire_pointer(address, ELEMENT)
    return _fp8.to_float32(
        tl.load(wire_ptr + col, mask=col < tl.where(address != 0, H, 0), other=0.0), CLOCK == "host"
    )


@triton.jit
def _ep_combine_send_kernel(
    x, y_ptr, weights_ptr, positions_ptr, counts_ptr,
    num_places, H, topk, stride_yp,
    RANKS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
    CLOCK: tl.constexpr, THREADS: tl.constexpr,
):  # fmt: skip
    """One program adds up the places of received rows first, first + step, ... and stores the sums at the
    ranks that the rows came from; the last one to end tells these.

    Grid: any, of one dimension. Invariants: row j from a source goes back as row j to it; a place that y does
    not have is none; zeros follow the H columns up to the row's end.
    """
    ELEMENT: tl.constexpr = y_ptr.dtype.element_ty
    epoch = tl.load(x.epochs) + 1
    is_open, is_well = _ep.wait_released(x, epoch, RANKS, CLOCK, THREADS)
    ranks = tl.arange(0, RANKS)
    counts = tl.load(counts_ptr + ranks, mask=ranks < x.num_ranks, other=0)
    ends = tl.cumsum(counts, 0)
    mine = _ep.rows_at(x, epoch, x.rank)
    width = x.row_bytes // (ELEMENT.primitive_bitwidth // 8)
    k = tl.arange(0, BLOCK_K)
    for row in range(tl.program_id(0), tl.where(is_well, tl.sum(counts, 0), 0), tl.num_programs(0)):
        positions = tl.load(positions_ptr + tl.cast(row, tl.int64) * topk + k, mask=k < topk, other=-1)
        if tl.max(positions, 0) >= num_places:
            _ep.report_capacity(x, epoch)
        is_place = ((positions >= 0) & (positions < num_places)).to(tl.int32)
        number = tl.where(is_place != 0, tl.cumsum(is_place, 0) - 1, -1)
        n = tl.max(number, 0) + 1
        rank, of_rank = _ep.find_row(row, ends)
        address = tl.load(x.bases + rank) + mine + of_rank.to(tl.int64) * x.row_bytes
        wire_ptr = _ep.wire_pointer(address, ELEMENT)
        for start in range(0, width, BLOCK):
            col = start + tl.arange(0, BLOCK)
            total = tl.zeros([BLOCK], tl.float32)
            for i in range(0, n, 4):
                a = load_place(y_ptr, weights_ptr, positions, number, i, col, H, stride_yp, CLOCK)
                b = load_place(y_ptr, weights_ptr, positions, number, i + 1, col, H, stride_yp, CLOCK)
                c = load_place(y_ptr, weights_ptr, positions, number, i + 2, col, H, stride_yp, CLOCK)
                d = load_place(y_ptr, weights_ptr, positions, number, i + 3, col, H, stride_yp, CLOCK)
                total = total + a + b + c + d
            total = tl.where(col < H, total, 0.0)  # NaN is a weight too
            tl.store(wire_ptr + col, _fp8.round_to(total, ELEMENT, CLOCK == "host"), mask=col < width)
    is_last, is_well = _ep.end_block(x.done, is_well, CLOCK, THREADS)
    if is_last:
        _ep.raise_arrived(x, epoch, counts_ptr, is_open, is_well == 0, RANKS, CLOCK, THREADS)


@triton.jit
def _ep_combine_receive_kernel(
    x, out_ptr, slots_ptr, counts_ptr,
    T, H, topk,
    RANKS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
    CLOCK: tl.constexpr, THREADS: tl.constexpr,
):  # fmt: skip
    """One program adds up what tokens first, first + step, ... come back as; the last one to end gives the
    memory back.

    Grid: any, of one dimension. Invariants: slots are sorted by rank, so a token's different ones in their
    order are its rows in the order of the ranks; rows of a rank that has failed are left out.
    """
    ELEMENT: tl.constexpr = out_ptr.dtype.element_ty
    epoch = tl.load(x.epochs + 1) + 1
    _counts, is_taken, is_here = _ep.wait_arrived(x, epoch, counts_ptr, RANKS, CLOCK, THREADS)
    ranks = tl.arange(0, RANKS)
    ends = tl.cumsum(tl.load(counts_ptr + ranks, mask=ranks < x.num_ranks, other=0), 0)
    base = tl.load(x.bases + x.rank)
    k = tl.arange(0, BLOCK_K)
    for t in range(tl.program_id(0), T, tl.num_programs(0)):
        slots = tl.load(slots_ptr + tl.cast(t, tl.int64) * topk + k, mask=k < topk, other=-1)
        number = _ep.number_slots(slots, k)
        source, row = _ep.find_rows(slots, ends)
        addresses = base + _ep.rows_at(x, epoch, source) + row.to(tl.int64) * x.row_bytes
        is_source = (source[:, None] == ranks[None, :]) & is_taken[None, :]
        addresses = tl.where(tl.max(is_source.to(tl.int32), 1) != 0, addresses, 0)
        n = tl.max(number, 0) + 1
        for start in range(0, H, BLOCK):
            col = start + tl.arange(0, BLOCK)
            total = tl.zeros([BLOCK], tl.float32)
            for i in range(0, n, 4):
                a = load_sent(addresses, number, i, col, H, ELEMENT, CLOCK)
                b = load_sent(addresses, number, i + 1, col, H, ELEMENT, CLOCK)
                c = load_sent(addresses, number, i + 2, col, H, ELEMENT, CLOCK)
                d = load_sent(addresses, number, i + 3, col, H, ELEMENT, CLOCK)
                total = total + a + b + c + d
            out = _fp8.round_to(total, ELEMENT, CLOCK == "host")
            tl.store(out_ptr + tl.cast(t, tl.int64) * H + col, out, mask=col < H)
    is_last, _is_well = _ep.end_block(x.done + 1, True, CLOCK, THREADS)
    if is_last:
        _ep.raise_released(x, epoch, is_here, RANKS)


def combine_send(
    exchange: DeviceExchange, y: Tensor, topk_weights: Tensor | None, positions: Tensor, recv_counts: Tensor
) -> None:
    (num_rows, topk), (places, H) = positions.shape, y.shape
    p = plan(H, y.itemsize, topk)
    _ep_combine_send_kernel[_ep.grid_of(exchange, num_rows)](
        exchange, y, topk_weights, positions, recv_counts, places, H, topk, y.stride(0),
        BLOCK=p.BLOCK, BLOCK_K=p.BLOCK_K, enable_fp_fusion=False, **_ep.options(exchange),
    )  # fmt: skip


def combine_receive(exchange: DeviceExchange, out: Tensor, slots: Tensor, send_counts: Tensor) -> None:
    (T, H), topk = out.shape, slots.size(1)
    p = plan(H, out.itemsize, topk)
    _ep_combine_receive_kernel[_ep.grid_of(exchange, T)](
        exchange, out, slots, send_counts, T, H, topk,
        BLOCK=p.BLOCK, BLOCK_K=p.BLOCK_K, enable_fp_fusion=False, **_ep.options(exchange),
    )  # fmt: skip
