"""What surrounds the pieces of split attention: tiles of a ragged batch before, the merge after.

A ragged batch is scheduled as one of tiles of rows: a tile is attended like a request, over the keys that its
last row sees.
"""

import triton
import triton.language as tl
from moela.kernels import _fp8


@triton.jit
def _tiles_kernel(
    cu_seqlens_q_ptr, seqlens_ptr, tiles_ptr, lengths_ptr,
    B, H, num_tiles,
    CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program writes the tiles of one request: (request, first row, tokens, first token), and lengths.

    Grid: (B + 1,); the last program writes what is left over of num_tiles, without tokens. Invariant: a
    request's tiles come after those of the requests before it.
    """
    request = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    before = tl.zeros((), tl.int32)
    for first in range(0, request, BLOCK):
        others = first + lane
        is_before = others < request
        begin = tl.load(cu_seqlens_q_ptr + others, mask=is_before, other=0)
        end = tl.load(cu_seqlens_q_ptr + others + 1, mask=is_before, other=0)
        before += tl.sum(tl.cdiv(tl.maximum(end - begin, 0) * H, BLOCK_M), 0)
    is_request = request < B
    token = tl.load(cu_seqlens_q_ptr + request, mask=is_request, other=0)
    tokens = tl.maximum(tl.load(cu_seqlens_q_ptr + request + 1, mask=is_request, other=0) - token, 0)
    seqlen = tl.load(seqlens_ptr + request, mask=is_request, other=0)
    count = tl.where(is_request, tl.cdiv(tokens * H, BLOCK_M), num_tiles - before)
    for first in range(0, count, BLOCK):
        tile = first + lane
        live = (tile < count) & (before + tile < num_tiles)
        last_row = tl.minimum((tile + 1) * BLOCK_M, tokens * H) - 1
        length = seqlen - (tokens - 1 - last_row // H) if CAUSAL else seqlen + tl.zeros_like(tile)
        tl.store(lengths_ptr + before + tile, tl.where(is_request, tl.maximum(length, 0), 0), mask=live)
        row_ptrs = tiles_ptr + (before + tile) * 4
        tl.store(row_ptrs, tl.where(is_request, request, 0) + tl.zeros_like(tile), mask=live)
        tl.store(row_ptrs + 1, tile * BLOCK_M, mask=live)
        tl.store(row_ptrs + 2, tokens + tl.zeros_like(tile), mask=live)
        tl.store(row_ptrs + 3, token + tl.zeros_like(tile), mask=live)


@triton.jit
def is_schedule_of(schedule_ptr, B, num_parts, rows, num_sums, stride_schedule, INVARIANT: tl.constexpr):
    """Whether the header says what the call says, and there are sums for all pieces: one made for requests
    longer than these can be may have more."""
    same = (tl.load(schedule_ptr) == B) & (tl.load(schedule_ptr + 1) == num_parts)
    same &= (tl.load(schedule_ptr + 2) == rows) & (tl.load(schedule_ptr + 3) == (1 if INVARIANT else 0))
    return same & (tl.load(schedule_ptr + (num_parts + 2 + B) * stride_schedule) <= num_sums)


@triton.jit
def _merge_kernel(
    sums_ptr, sums_lse_ptr, schedule_ptr, seqlens_ptr, tiles_ptr, out_ptr, lse_ptr,
    B, num_parts, rows, H, num_sums, stride_schedule,
    L: tl.constexpr, IS_RAGGED: tl.constexpr, INVARIANT: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    BLOCK_L: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One program merges the pieces of BLOCK_ROWS rows of a request, in order.

    Grid: (B * cdiv(rows, BLOCK_ROWS),), B of tiles if IS_RAGGED; either factor may exceed 65535. A request of
    one piece is complete already; one whose length is not the schedule's is NaN. A piece without keys has an
    lse of -Inf and weighs nothing, so that a row with keys in one piece only is as that piece left it.
    """
    programs = tl.cdiv(rows, BLOCK_ROWS)  # of a request
    request = tl.program_id(0) // programs
    row = tl.program_id(0) % programs * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    col = tl.arange(0, BLOCK_L)[None, :]
    entry = schedule_ptr + (num_parts + 2 + request) * stride_schedule
    first, end = tl.load(entry), tl.load(entry + stride_schedule)
    is_fresh = True
    if IS_RAGGED:
        first_row = tl.load(tiles_ptr + request * 4 + 1)
        is_row = first_row + row < tl.load(tiles_ptr + request * 4 + 2) * H
        out_row = tl.load(tiles_ptr + request * 4 + 3).to(tl.int64) * H + first_row + row
    else:
        is_fresh = tl.load(entry + 1) == tl.load(seqlens_ptr + request)
        is_fresh &= is_schedule_of(schedule_ptr, B, num_parts, rows, num_sums, stride_schedule, INVARIANT)
        is_row = row < rows
        out_row = request.to(tl.int64) * rows + row
    if (end - first == 1) & is_fresh:
        return
    wide = tl.zeros((), tl.int64)  # offsets are int64
    most = tl.full((BLOCK_ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_ROWS,), tl.float32)
    acc = tl.zeros((BLOCK_ROWS, BLOCK_L), tl.float32)
    if is_fresh:
        for piece in range(first, end):
            lse = tl.load(sums_lse_ptr + (wide + piece) * rows + row, mask=is_row, other=0.0)
            most = tl.maximum(most, lse)
        most = tl.where(most == float("-inf"), 0.0, most)
        for piece in range(first, end):
            at = (wide + piece) * rows + row
            weight = tl.exp(tl.load(sums_lse_ptr + at, mask=is_row, other=0.0) - most)
            mask = is_row[:, None] & (col < L)
            acc += weight[:, None] * tl.load(sums_ptr + at[:, None] * L + col, mask=mask, other=0.0)
            total += weight
    else:
        total += float("nan")
    has_keys = total != 0.0
    out = tl.where(has_keys[:, None], tl.div_rn(acc, total[:, None] + tl.zeros_like(acc)), 0.0)
    out = _fp8.round_to(out, out_ptr.dtype.element_ty, INTERPRETED)
    tl.store(out_ptr + out_row[:, None] * L + col, out, mask=is_row[:, None] & (col < L))
    tl.store(lse_ptr + out_row, tl.where(has_keys, most + tl.log(total), float("-inf")), mask=is_row)
