"""The places of received rows in the layouts of ep_dispatch that are sorted by expert: a Triton kernel."""

from dataclasses import dataclass

import triton
import triton.language as tl
from moela.ep.device import DeviceExchange
from moela.kernels import _ep, _fp8
from torch import Tensor


@dataclass(frozen=True)
class Plan:
    BLOCK_T: int  # rows of one step
    BLOCK_K: int
    num_warps: int


def plan(topk: int, num_ranks: int) -> Plan:
    """Bound: latency, of readings of all ids from L2: 262 144 of them are 64 steps of a microsecond or two
    for each expert. A row is compared with the rows of each rank. Two blocks of 128 registers fit a
    multiprocessor.
    """
    block_k, most = triton.next_power_of_2(topk), 16384 // triton.next_power_of_2(num_ranks)
    return Plan(BLOCK_T=max(1, min(4096 // block_k, most)), BLOCK_K=block_k, num_warps=8)


@triton.jit
def load_ids(
    x, epoch, base, ends, first, ids_offset, topk, first_expert, num_local_experts,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Of received rows first, first + 1, ...: the number of each (row, k) among all, and the local expert, -1
    where it is not here; flat, in this order. Past the last row, and past topk: -1 is the number too."""
    rows = first + tl.arange(0, BLOCK_T)
    k = tl.arange(0, BLOCK_K)[None, :]
    source, row = _ep.find_rows(rows, ends)
    wire = base + _ep.rows_at(x, epoch, source) + row.to(tl.int64) * x.row_bytes + ids_offset
    is_pair = (rows[:, None] < tl.max(ends, 0)) & (k < topk)
    ids = tl.load(wire[:, None].to(tl.pointer_type(tl.int32)) + k, mask=is_pair, other=-1)
    ids -= first_expert
    is_here = is_pair & (ids >= 0) & (ids < num_local_experts)
    pairs = tl.where(is_pair, rows[:, None] * topk + k, -1)
    return tl.reshape(pairs, [BLOCK_T * BLOCK_K]), tl.reshape(tl.where(is_here, ids, -1), [BLOCK_T * BLOCK_K])


@triton.jit
def _ep_place_kernel(
    x, positions_ptr, experts_ptr,
    ids_offset, topk, first_expert, num_local_experts, capacity,
    SORTED: tl.constexpr, RANKS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr,
    CLOCK: tl.constexpr, THREADS: tl.constexpr,
):  # fmt: skip
    """One program numbers the (row, k) of experts first, first + step, ...: in received order, then by k.

    Grid: any, of one dimension. Invariants: a place is the number of pairs of lower experts (SORTED) and of
    earlier ones of its own, which every program counts for itself; each pair has one writer, one without an
    expert here that of the first.
    """
    epoch = tl.load(x.epochs + 1) + 1
    counts, _is_taken, _is_here = _ep.wait_arrived(x, epoch, None, RANKS, CLOCK, THREADS)
    ends = tl.cumsum(counts, 0)
    total = tl.sum(counts, 0)
    base = tl.load(x.bases + x.rank)
    last = tl.maximum(num_local_experts, 1) - 1
    for expert in range(tl.program_id(0), last + 1, tl.num_programs(0)):
        begin = expert * capacity
        end = begin + capacity
        if SORTED:
            begin = 0
            end = capacity
            for row in range(0, total, BLOCK_T):
                _pairs, ids = load_ids(
                    x, epoch, base, ends, row, ids_offset, topk, first_expert, num_local_experts, BLOCK_T,
                    BLOCK_K,
                )  # fmt: skip
                begin += tl.sum(((ids >= 0) & (ids < expert)).to(tl.int32), 0)
        place = begin
        also_written = tl.where(expert == 0, -1, expert)
        for row in range(0, total, BLOCK_T):
            pairs, ids = load_ids(
                x, epoch, base, ends, row, ids_offset, topk, first_expert, num_local_experts, BLOCK_T, BLOCK_K
            )
            is_mine = (ids == expert).to(tl.int32)
            places = place + tl.cumsum(is_mine, 0) - is_mine
            places = tl.where((is_mine != 0) & (places < end), places, -1)
            is_written = (ids == expert) | (ids == also_written)
            tl.store(positions_ptr + pairs, places, mask=is_written & (pairs >= 0))
            place += tl.sum(is_mine, 0)
        if expert < num_local_experts:
            tl.store(experts_ptr + expert, begin if SORTED else place - begin)
        if SORTED and expert == last:
            tl.store(experts_ptr + num_local_experts, place)
        if place > end:
            _ep.report_capacity(x, epoch)

    num_pairs = x.num_ranks * x.max_tokens * topk
    first = total * topk + tl.program_id(0) * BLOCK_T
    for pair in range(first, num_pairs, tl.num_programs(0) * BLOCK_T):
        pairs = pair + tl.arange(0, BLOCK_T)
        tl.store(positions_ptr + pairs, tl.full([BLOCK_T], -1, tl.int32), mask=pairs < num_pairs)


def place(
    exchange: DeviceExchange,
    layout: str,
    ids_offset: int,
    topk: int,
    first_expert: int,
    num_local_experts: int,
    capacity: int,
    positions: Tensor,
    experts: Tensor,
) -> None:
    p = plan(topk, exchange.num_ranks)
    # A block per expert, but where ranks share a device not more than run at once.
    most = max(8, 2 * _fp8.target_of(positions.device).multiprocessors // exchange.num_ranks)
    _ep_place_kernel[(max(1, min(num_local_experts, most)),)](
        exchange, positions, experts, ids_offset, topk, first_expert, num_local_experts, capacity,
        SORTED=layout == "expert", BLOCK_T=p.BLOCK_T, BLOCK_K=p.BLOCK_K,
        **_ep.options(exchange, p.num_warps),
    )  # fmt: skip
