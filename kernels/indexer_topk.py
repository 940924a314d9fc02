"""Triton backend of ``indexer_topk``: a radix select, a row per program.

Four readings of a row count its ranks by one digit after the other, the most significant first, and find the
rank of the last one that is chosen; a fifth writes what is chosen, in order.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from moela.kernels import _fp8
from torch import Tensor


@dataclass(frozen=True)
class Plan:
    BLOCK: int  # columns of one step
    num_warps: int


def plan(interpreted: bool) -> Plan:
    """The interpreter's time is steps, so it takes many columns in each."""
    return Plan(BLOCK=8192, num_warps=1) if interpreted else Plan(BLOCK=2048, num_warps=8)


@triton.jit
def load_ranks(ptrs, mask):
    """(uint32 in the order of the floats, which of them may be chosen).

    -0 has the rank of 0, NaN that above all.
    """
    x = tl.load(ptrs, mask=mask, other=float("-inf"))
    bits = (x + 0.0).to(tl.uint32, bitcast=True)
    rank = tl.where((bits >> 31) != 0, bits ^ 0xFFFFFFFF, bits | 0x80000000)
    rank = tl.where(x != x, 0xFFFFFFFF, rank).to(tl.uint32)
    return rank, x != float("-inf")


@triton.jit
def count_digits(row_ptr, begin, end, last, SHIFT: tl.constexpr, BLOCK: tl.constexpr):
    """[256] int32: how many ranks have each digit at SHIFT, of those whose higher digits are `last`."""
    counts = tl.zeros((256,), tl.int32)
    for start in range(begin, end, BLOCK):
        column = start + tl.arange(0, BLOCK)
        rank, is_counted = load_ranks(row_ptr + column, column < end)
        if SHIFT < 24:
            is_counted &= (rank >> (SHIFT + 8)) == last
        # The interpreter has no histogram without a mask.
        counts += tl.histogram(((rank >> SHIFT) & 0xFF).to(tl.int32), 256, mask=is_counted)
    return counts


@triton.jit
def _indexer_topk_kernel(
    logits_ptr, ks_ptr, ke_ptr, table_ptr, ids_ptr, indices_ptr,
    S, topk, rows_of_request, num_blocks, page_size, stride_l, stride_tb,
    HAS_KS: tl.constexpr, HAS_KE: tl.constexpr, HAS_TABLE: tl.constexpr, HAS_IDS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One program owns one row of the result.

    Grid: (M,). Invariants: columns outside of [ks, ke) are not loaded; entries of the table are loaded for
    what is chosen only. A chosen column's place is the number of those before it.
    """
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * stride_l
    place = tl.arange(0, BLOCK)
    begin, end = 0, S
    if HAS_KS:
        begin = tl.maximum(tl.load(ks_ptr + row), 0)
    if HAS_KE:
        end = tl.minimum(tl.load(ke_ptr + row), S)
    request = row // rows_of_request
    if HAS_IDS:
        request = tl.load(ids_ptr + row).to(tl.int64)
        end = tl.where(request < 0, begin, end)

    last = tl.zeros((), tl.uint32)  # of the rank of the last one: the digits found so far
    wanted = topk  # among those that share them
    for level in tl.static_range(4):
        counts = count_digits(row_ptr, begin, end, last, 24 - 8 * level, BLOCK)
        total = tl.sum(counts, 0)
        if level == 0:
            wanted = tl.minimum(wanted, total)
        above = total - tl.cumsum(counts, 0)
        is_found = (above < wanted) & (above + counts >= wanted)  # one, if any is wanted
        digit = tl.sum(tl.where(is_found, tl.arange(0, 256), 0), 0)
        last = (last << 8) | digit.to(tl.uint32)
        wanted -= tl.sum(tl.where(is_found, above, 0), 0)

    out_ptr = indices_ptr + row * topk
    num_chosen = 0
    num_equal = 0
    for start in range(begin, end, BLOCK):
        column = start + place
        rank, may_be = load_ranks(row_ptr + column, column < end)
        equal = (may_be & (rank == last)).to(tl.int32)
        equal_before = num_equal + tl.cumsum(equal, 0) - equal
        chosen = may_be & ((rank > last) | ((equal != 0) & (equal_before < wanted)))
        is_chosen = chosen.to(tl.int32)
        to = num_chosen + tl.cumsum(is_chosen, 0) - is_chosen
        index = column
        if HAS_TABLE:
            position = column - begin
            block = position // page_size
            has_page = chosen & (block < num_blocks)
            page = tl.load(table_ptr + request * stride_tb + block, mask=has_page, other=-1)
            index = tl.where(has_page, page * page_size + position % page_size, -1)
        tl.store(out_ptr + to, index, mask=chosen)
        num_chosen += tl.sum(is_chosen, 0)
        num_equal += tl.sum(equal, 0)
    for start in range(0, topk, BLOCK):
        to = start + place
        tl.store(out_ptr + to, tl.full((BLOCK,), -1, tl.int32), mask=(to >= num_chosen) & (to < topk))


def launch(
    logits: Tensor,
    topk: int,
    ks: Tensor | None = None,
    ke: Tensor | None = None,
    block_table: Tensor | None = None,
    page_size: int | None = None,
    request_ids: Tensor | None = None,
    *,
    out: tuple[Tensor],
) -> None:
    (indices,) = out
    M, S = indices.numel() // topk, logits.size(-1)
    if M == 0:
        return
    rows = logits.reshape(M, S)  # a view unless no common stride leads
    ks, ke, request_ids = (None if t is None else t.contiguous() for t in (ks, ke, request_ids))
    table = indices.view(M, topk) if block_table is None else block_table
    p = plan(_fp8.target_of(logits.device).interpreted)
    _indexer_topk_kernel[(M,)](
        rows, *(indices if t is None else t for t in (ks, ke)), table,
        indices if request_ids is None else request_ids, indices,
        S, topk, M // logits.size(0), table.size(1), page_size or 1, rows.stride(0), table.stride(0),
        HAS_KS=ks is not None, HAS_KE=ke is not None, HAS_TABLE=block_table is not None,
        HAS_IDS=request_ids is not None, BLOCK=p.BLOCK, num_warps=p.num_warps,
    )  # fmt: skip
