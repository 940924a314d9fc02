"""Triton backend of ``mla_schedule``: prefix sums of costs by one program, then the rows by some.

Costs are int64: those of 2^20 requests of 2^31 tokens fit.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from moela.reference.mla_schedule import PIECE_BLOCKS, UNIT, merge_cost, piece_cost
from torch import Tensor


@dataclass(frozen=True)
class Plan:
    BLOCK_P: int  # all boundaries of parts
    BLOCK_COST: int  # requests whose costs are added at a time
    BLOCK_B: int  # requests of one program that writes rows, compared with all boundaries
    num_warps: int


def plan(num_parts: int) -> Plan:
    BLOCK_P = triton.next_power_of_2(num_parts + 1)
    return Plan(BLOCK_P=BLOCK_P, BLOCK_COST=1024, BLOCK_B=max(8192 // BLOCK_P, 1), num_warps=4)


@triton.jit
def _blocks_of(seqlens):
    return (tl.maximum(seqlens, 0).to(tl.int64) + 63) // 64


@triton.jit
def _fixed_pieces_of(blocks, PIECE_BLOCKS: tl.constexpr):
    return tl.maximum((blocks + PIECE_BLOCKS - 1) // PIECE_BLOCKS, 1)


@triton.jit
def _costs_kernel(
    seqlens_ptr, begin_ptr, first_piece_ptr, share_ptr,
    B, num_parts, piece_cost, merge_cost,
    INVARIANT: tl.constexpr, PIECE_BLOCKS: tl.constexpr, UNIT: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_COST: tl.constexpr,
):  # fmt: skip
    """The only program adds the costs of requests (begin [B + 1]) and chooses the share of a part.

    Grid: (1,). A share of 0: every request is a part of its own. With INVARIANT it also adds up pieces
    (first_piece [B + 1]). Invariant: a request at or beyond B costs nothing.
    """
    lane = tl.arange(0, BLOCK_COST)
    total = tl.zeros((), tl.int64)
    num_pieces = tl.zeros((), tl.int64)
    most = tl.zeros((), tl.int64)
    for first in range(0, B, BLOCK_COST):
        live = first + lane < B
        blocks = _blocks_of(tl.load(seqlens_ptr + first + lane, mask=live, other=0))
        pieces = _fixed_pieces_of(blocks, PIECE_BLOCKS) if INVARIANT else tl.full(blocks.shape, 1, tl.int64)
        pieces = tl.where(live, pieces, 0)
        cost = blocks + pieces * piece_cost
        tl.store(begin_ptr + first + lane, total + tl.cumsum(cost, 0) - cost, mask=live)
        if INVARIANT:
            tl.store(first_piece_ptr + first + lane, num_pieces + tl.cumsum(pieces, 0) - pieces, mask=live)
        total += tl.sum(cost, 0)
        num_pieces += tl.sum(pieces, 0)
        most = tl.maximum(most, tl.max(blocks, 0))
    tl.store(begin_ptr + B, total)
    if INVARIANT:
        tl.store(first_piece_ptr + B, num_pieces)
        share = (total + num_parts - 1) // num_parts
    else:
        used = (tl.arange(0, BLOCK_P) + 1).to(tl.int64)
        costs = UNIT * ((total + used - 1) // used) + merge_cost * used
        costs += tl.where(used > 1, UNIT * (piece_cost + 1), 0)
        costs = tl.where(used <= num_parts, costs, 0x7FFFFFFFFFFFFFFF)
        least = tl.min(costs, 0)
        best = tl.min(tl.where(costs == least, used, BLOCK_P), 0)
        is_whole = (B <= num_parts) & (UNIT * (most + piece_cost) <= least)
        share = tl.where(is_whole, 0, (total + best - 1) // best)
    tl.store(share_ptr, share)


@triton.jit
def _rows_kernel(
    seqlens_ptr, begin_ptr, first_piece_ptr, share_ptr, schedule_ptr,
    B, num_parts, rows, piece_cost, SEARCH_STEPS,
    INVARIANT: tl.constexpr, PIECE_BLOCKS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """One program writes the rows of BLOCK_B requests, the first also the header and the boundaries.

    Grid: (cdiv(B + 1, BLOCK_B),). Every program finds all boundaries, for the pieces of its requests.
    Invariant: BLOCK_P is above num_parts.
    """
    part = tl.arange(0, BLOCK_P)
    share = tl.load(share_ptr)
    at = part * share
    # The last request that begins at or before it, B at the end.
    request = tl.zeros((BLOCK_P,), tl.int32)
    above = tl.zeros((BLOCK_P,), tl.int32) + (B + 1)
    for _ in range(SEARCH_STEPS):
        middle = (request + above) // 2
        is_before = tl.load(begin_ptr + middle) <= at
        request = tl.where(is_before, middle, request)
        above = tl.where(is_before, above, middle)
    offset = at - tl.load(begin_ptr + request)
    if INVARIANT:
        block = offset // (PIECE_BLOCKS + piece_cost) * PIECE_BLOCKS
    else:
        block = tl.maximum(offset - piece_cost, 0)
        request = tl.where(share == 0, tl.minimum(part, B), request)
    block = tl.where((request == B) | (share == 0), 0, block)
    is_cut = ((block > 0) & (part <= num_parts)).to(tl.int32)

    if tl.program_id(0) == 0:
        if INVARIANT:
            piece = tl.load(first_piece_ptr + request) + block // PIECE_BLOCKS
        else:
            piece = request + tl.cumsum(is_cut, 0)
        tl.store(schedule_ptr, B)
        tl.store(schedule_ptr + 1, num_parts)
        tl.store(schedule_ptr + 2, rows)
        tl.store(schedule_ptr + 3, 1 if INVARIANT else 0)
        row_ptrs = schedule_ptr + 4 + part * 4
        is_part = part <= num_parts
        tl.store(row_ptrs, request, mask=is_part)
        tl.store(row_ptrs + 1, block.to(tl.int32), mask=is_part)
        tl.store(row_ptrs + 2, piece.to(tl.int32), mask=is_part)
        tl.store(row_ptrs + 3, tl.zeros((BLOCK_P,), tl.int32), mask=is_part)

    mine = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    is_mine = mine <= B
    if INVARIANT:
        first_piece = tl.load(first_piece_ptr + mine, mask=is_mine, other=0).to(tl.int32)
    else:
        cuts_before = tl.where(request[:, None] < mine[None, :], is_cut[:, None], 0)
        first_piece = mine + tl.sum(cuts_before, 0)
    row_ptrs = schedule_ptr + (num_parts + 2 + mine) * 4
    tl.store(row_ptrs, first_piece, mask=is_mine)
    tl.store(row_ptrs + 1, tl.load(seqlens_ptr + mine, mask=mine < B, other=0), mask=is_mine)
    zeros = tl.zeros((BLOCK_B,), tl.int32)
    tl.store(row_ptrs + 2, zeros, mask=is_mine)
    tl.store(row_ptrs + 3, zeros, mask=is_mine)


def launch(
    seqlens: Tensor, *, rows: int, num_parts: int, batch_invariant: bool = False, out: tuple[Tensor]
) -> None:
    B, p = seqlens.size(0), plan(num_parts)
    costs = seqlens.new_empty(2 * (B + 1) + 1, dtype=torch.int64)
    begin, first_piece, share = costs[: B + 1], costs[B + 1 : -1], costs[-1:]
    piece = piece_cost(rows)
    _costs_kernel[(1,)](
        seqlens, begin, first_piece, share, B, num_parts, piece, merge_cost(rows, num_parts),
        INVARIANT=batch_invariant, PIECE_BLOCKS=PIECE_BLOCKS, UNIT=UNIT, BLOCK_P=p.BLOCK_P,
        BLOCK_COST=p.BLOCK_COST, num_warps=p.num_warps,
    )  # fmt: skip
    _rows_kernel[(triton.cdiv(B + 1, p.BLOCK_B),)](
        seqlens, begin, first_piece, share, out[0], B, num_parts, rows, piece, (B + 1).bit_length(),
        INVARIANT=batch_invariant, PIECE_BLOCKS=PIECE_BLOCKS, BLOCK_P=p.BLOCK_P, BLOCK_B=p.BLOCK_B,
        num_warps=p.num_warps,
    )  # fmt: skip
