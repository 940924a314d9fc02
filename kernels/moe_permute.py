"""Triton backend of ``moe_permute``: a counting sort in three kernels, and the copies.

Nothing depends on the order in which programs run: a pair's rank among those of its expert is counted, and no
row is taken from a counter that programs share.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from moela.kernels import _fp8
from torch import Tensor


@dataclass(frozen=True)
class Plan:
    BLOCK: int  # pairs of one program of the sort
    STEP: int  # earlier pairs of the block that its pairs are compared with at a time
    BLOCK_B: int  # blocks of pairs that the scan takes at a time
    num_warps: int


def plan(bins: int, interpreted: bool) -> Plan:
    """All pairs of a block are compared with each other; 256 by 256 at a time would fill the registers."""
    return Plan(BLOCK=256, STEP=256 if interpreted else 32, BLOCK_B=max(1, 8192 // bins), num_warps=8)


@triton.jit
def load_experts(ids_ptr, pair, num_pairs, num_experts):
    """The experts of pairs; num_experts for those that are dropped or do not exist."""
    ids = tl.load(ids_ptr + pair, mask=pair < num_pairs, other=-1)
    is_here = (ids >= 0) & (ids < num_experts)
    return tl.where(is_here, ids, num_experts).to(tl.int32)


@triton.jit
def _count_kernel(
    ids_ptr, counts_ptr,
    num_pairs, num_experts,
    BINS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program counts the pairs of one block by expert: one row of counts [num_blocks, BINS].

    Grid: (cdiv(num_pairs, BLOCK),). Invariant: BINS is above num_experts, whose bin takes what is dropped.
    """
    block = tl.program_id(0)
    pair = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    experts = load_experts(ids_ptr, pair, num_pairs, num_experts)
    # The interpreter has no histogram without a mask.
    counts = tl.histogram(experts, BINS, mask=pair < num_pairs)
    tl.store(counts_ptr + block.to(tl.int64) * BINS + tl.arange(0, BINS), counts)


@triton.jit
def _scan_kernel(
    counts_ptr, expert_offsets_ptr,
    num_blocks, num_experts,
    BINS: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """The only program turns counts into the first row of each block's pairs of each expert, in place.

    Grid: (1,). Blocks are taken BLOCK_B at a time, twice: for the totals, and for the rows. Invariant: a
    block at or beyond num_blocks counts nothing.
    """
    bins = tl.arange(0, BINS)
    blocks = tl.arange(0, BLOCK_B)[:, None]
    total = tl.zeros([BINS], dtype=tl.int32)
    for first in range(0, num_blocks, BLOCK_B):
        ptrs = counts_ptr + (first + blocks).to(tl.int64) * BINS + bins[None, :]
        total += tl.sum(tl.load(ptrs, mask=first + blocks < num_blocks, other=0), 0)
    total = tl.where(bins < num_experts, total, 0)
    row = tl.cumsum(total, 0) - total  # [BINS]
    tl.store(expert_offsets_ptr + bins, row, mask=bins <= num_experts)
    for first in range(0, num_blocks, BLOCK_B):
        mask = first + blocks < num_blocks
        ptrs = counts_ptr + (first + blocks).to(tl.int64) * BINS + bins[None, :]
        counts = tl.load(ptrs, mask=mask, other=0)
        tl.store(ptrs, row[None, :] + tl.cumsum(counts, 0) - counts, mask=mask)
        row += tl.sum(counts, 0)


@triton.jit
def _place_kernel(
    ids_ptr, rows_ptr, inverse_ptr,
    num_pairs, num_experts,
    BINS: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """One program gives the pairs of one block their rows: the block's first of the expert, and the rank.

    Grid: (cdiv(num_pairs, BLOCK),). Invariant: a pair's rank is the number of earlier pairs of its expert in
    its block.
    """
    block = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    pair = block * BLOCK + place
    experts = load_experts(ids_ptr, pair, num_pairs, num_experts)
    rank = tl.zeros([BLOCK], dtype=tl.int32)
    for start in range(0, BLOCK, STEP):
        earlier = start + tl.arange(0, STEP)
        others = load_experts(ids_ptr, block * BLOCK + earlier, num_pairs, num_experts)
        counts = (experts[:, None] == others[None, :]) & (earlier[None, :] < place[:, None])
        rank += tl.sum(counts.to(tl.int32), 1)
    first = tl.load(rows_ptr + block * BINS + experts)
    row = tl.where(experts < num_experts, first + rank, -1)
    tl.store(inverse_ptr + pair, row, mask=pair < num_pairs)


@triton.jit
def _copy_kernel(
    x_ptr, x_sorted_ptr, inverse_ptr, num_rows_ptr,
    H, topk, stride_xt,
    BLOCK_H: tl.constexpr,
):  # fmt: skip
    """One program copies a piece of a token's row to its places, and zeros the rows that no pair has.

    Grid: (T, cdiv(H, BLOCK_H)). Invariant: rows from *num_rows_ptr on are zero; the program of token t has
    those of t * topk .. (t + 1) * topk, so each row has one writer.
    """
    token = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    num_rows = tl.load(num_rows_ptr)
    piece = tl.load(x_ptr + token * stride_xt + col, mask=col < H)
    for slot in range(topk):
        pair = token * topk + slot
        row = tl.load(inverse_ptr + pair).to(tl.int64)
        tl.store(x_sorted_ptr + row * H + col, piece, mask=col < tl.where(row >= 0, H, 0))
        tl.store(
            x_sorted_ptr + pair * H + col, tl.zeros_like(piece), mask=col < tl.where(pair >= num_rows, H, 0)
        )


def as_integers(x: Tensor, x_sorted: Tensor) -> tuple[Tensor, Tensor]:
    """Both as rows of the widest integers that they are made of."""
    sizes = (x.size(1), x.stride(0), x.storage_offset(), x_sorted.storage_offset())
    sizes = (*(n * x.element_size() for n in sizes), x.data_ptr(), x_sorted.data_ptr())
    every = (torch.int64, torch.int32, torch.int16, torch.uint8)
    dtype = next(d for d in every if all(n % d.itemsize == 0 for n in sizes))
    return x.view(dtype), x_sorted.view(dtype)


def copy_rows(x: Tensor, inverse: Tensor, expert_offsets: Tensor, x_sorted: Tensor) -> None:
    """What `launch` makes of x, for any rows of the same tokens, such as their scale factors. H is not 0."""
    T, topk = inverse.shape
    x, x_sorted = as_integers(x, x_sorted)
    row_elements = x.size(1)
    block_h = min(
        triton.next_power_of_2(row_elements), 8192 if _fp8.target_of(x.device).interpreted else 2048
    )
    _copy_kernel[(T, triton.cdiv(row_elements, block_h))](
        x, x_sorted, inverse, expert_offsets[-1:], row_elements, topk, x.stride(0),
        BLOCK_H=block_h, num_warps=4,
    )  # fmt: skip


def launch(x: Tensor, topk_ids: Tensor, num_experts: int, *, out: tuple[Tensor, Tensor, Tensor]) -> None:
    x_sorted, expert_offsets, inverse = out
    num_pairs = topk_ids.numel()
    if num_pairs == 0:
        expert_offsets.zero_()
        return
    bins = triton.next_power_of_2(num_experts + 1)
    p = plan(bins, _fp8.target_of(x.device).interpreted)
    num_blocks = triton.cdiv(num_pairs, p.BLOCK)
    counts = torch.empty(num_blocks, bins, dtype=torch.int32, device=x.device)
    ids = topk_ids.contiguous()
    sort = {"BINS": bins, "num_warps": p.num_warps}
    _count_kernel[(num_blocks,)](ids, counts, num_pairs, num_experts, BLOCK=p.BLOCK, **sort)
    _scan_kernel[(1,)](counts, expert_offsets, num_blocks, num_experts, BLOCK_B=p.BLOCK_B, **sort)
    _place_kernel[(num_blocks,)](
        ids, counts, inverse, num_pairs, num_experts, BLOCK=p.BLOCK, STEP=p.STEP, **sort
    )
    if x.size(1):
        copy_rows(x, inverse, expert_offsets, x_sorted)
