"""Triton backend of ``mla_decode``: keys are split as ``mla_schedule`` says, and the pieces merged in order.

A latent tile is loaded once: it is key and value. A tile of rows has those of several queries where heads are
few, so that they share keys. bfloat16 multiplies the codes of a cache of bytes, which it holds exactly: scale
factors go to the sums of the scores of their 128 columns, and to the weights.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from moela.kernels import _fp8, mla_schedule
from moela.kernels._gemm import dot
from moela.kernels._mla_cache import _load_codes, _load_latent, _load_rope, dot_dtype, is_finite
from moela.kernels._mla_pieces import _merge_kernel, _tiles_kernel, is_schedule_of
from moela.reference.mla_schedule import BLOCK, PIECE_BLOCKS
from torch import Tensor

_TRITON = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}
PIECE_KEYS = PIECE_BLOCKS * BLOCK  # with batch_invariant
WHOLE = 1 << 30  # keys of a piece that only the end of a part ends
MERGE_ROWS = 2  # of one program
SUMS_BYTES = 1 << 30  # of pieces with batch_invariant, unless a single request may have more
INTERPRETED_PARTS = 3


@dataclass(frozen=True)
class Plan:
    BLOCK_M: int  # rows of one program
    BLOCK_N: int  # keys of one step
    num_warps: int
    num_stages: int


def plan(H: int, dot_dtype: torch.dtype, is_grouped: bool, target: _fp8.Target) -> Plan:
    """Rows depend on H only: a request's bits depend neither on its batch nor on how many tokens it has.

    The sums of 32 rows of 512 columns are 64 registers of 256 threads. Products of float32 keep both operands
    in registers, which takes twice the threads on NVIDIA, and codes in groups leave room for half as much. Of
    the tiles, warps and stages those are chosen that spill nothing (tests/sass).
    """
    is_nvidia = target.lanes == 32
    if dot_dtype == torch.float32:
        return Plan(16, 16, num_warps=16 if is_nvidia else 4, num_stages=1 if is_nvidia else 2)
    if is_grouped:
        return Plan(16, 16, num_warps=8, num_stages=1)
    rows, keys = (16, 32 if is_nvidia else 16) if H <= 16 else (32, 16)
    return Plan(rows, keys, num_warps=8, num_stages=2 if is_nvidia else 1)


def num_parts_for(rows: int, p: Plan, target: _fp8.Target) -> int:
    """Parts of the schedule that launch() makes: with all tiles of rows as many programs as run at once."""
    if target.interpreted:
        return INTERPRETED_PARTS
    return max(target.multiprocessors // triton.cdiv(rows, p.BLOCK_M), 1)


def items_at_once(items: int, fixed_pieces: int, rows: int, v_dim: int) -> int:
    """How many requests, or tiles of them, one launch attends. fixed_pieces: at most, of one; 0: not fixed.

    With batch_invariant pieces follow from the width of the block table alone, and each needs memory. But
    then a result does not depend on what is attended beside it: a batch may be attended some at a time.
    """
    bytes_of_one = fixed_pieces * rows * v_dim * 4
    return max(min(SUMS_BYTES // max(bytes_of_one, 1), items), 1) if fixed_pieces else items


def _alignment(cache: Tensor) -> int:
    """What the addresses of rows are multiples of: 4, or 1."""
    return 1 if any(n % 4 for n in (cache.data_ptr(), *cache.stride()[:2])) else 4


@triton.jit
def _rows(x, GROUPS: tl.constexpr):
    """[N] beside columns: [N, 1], or [1, N, 1] where these are in groups."""
    return x[None, :, None] if GROUPS else x[:, None]


@triton.jit
def _row_ptrs(
    cache_ptr, pages_ptr, request, key, live, page_size, stride_page, stride_slot, IS_PAGED: tl.constexpr
):
    """Where the latents of keys of a request begin."""
    if IS_PAGED:
        page = tl.load(pages_ptr + key // page_size, mask=live, other=0).to(tl.int64)
    else:
        page = tl.zeros(key.shape, tl.int64) + request
    return cache_ptr + page * stride_page + (key % page_size).to(tl.int64) * stride_slot


@triton.jit
def _load_values(
    row_ptrs, live, latent,
    L: tl.constexpr, BYTES: tl.constexpr, GROUPS: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Values of DOT, and what multiplies them: [GROUPS, keys, 128] and [GROUPS, 1, keys]; or [keys, BLOCK_L]
    and 1."""
    if GROUPS:
        values, sf = _load_codes(row_ptrs, live, L, GROUPS, BYTES)
    else:
        values, sf = _load_latent(row_ptrs, live, latent, L, BYTES, DOT), 1.0
    return values, sf


@triton.jit
def _attend_piece(
    q_ptrs, is_row, limit, least, cache_ptr, pages_ptr, request, first, end,
    page_size, sm_scale, stride_page, stride_slot,
    L: tl.constexpr, R: tl.constexpr, IS_PAGED: tl.constexpr, BYTES: tl.constexpr, HAS_TAIL: tl.constexpr,
    GROUPS: tl.constexpr, DOT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_R: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Keys [first, end) of a request -> out and lse of a tile of rows.

    Row i sees the keys before limit[i], and all rows those before `least`; without HAS_TAIL there are no
    others. Keys that nobody sees are not loaded, and nor are the pages beyond them. A value that some rows do
    not see has a weight of 0 there, and may be NaN: what of it is not finite is taken out, and put into the
    rows that see it at last.
    """
    latent, rope = tl.arange(0, BLOCK_L), tl.arange(0, BLOCK_R)
    if GROUPS:
        col = (tl.arange(0, GROUPS) * 128)[:, None, None] + tl.arange(0, 128)[None, None, :]
        acc = tl.zeros((GROUPS, BLOCK_M, 128), tl.float32)
    else:
        col = latent[None, :]
        acc = tl.zeros((BLOCK_M, BLOCK_L), tl.float32)
    q_c = tl.load(_rows(q_ptrs, GROUPS) + col, mask=_rows(is_row, GROUPS) & (col < L), other=0.0)
    q_c = q_c if q_c.dtype == DOT else _fp8.to_float32(q_c, True)
    if R > 0:
        is_pe = is_row[:, None] & (rope < R)[None, :]
        q_pe = tl.load(q_ptrs[:, None] + L + rope[None, :], mask=is_pe, other=0.0)
        q_pe = q_pe if q_pe.dtype == DOT else _fp8.to_float32(q_pe, True)

    most = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(first, end, BLOCK_N):
        key = start + tl.arange(0, BLOCK_N)
        live = key < end
        row_ptrs = _row_ptrs(
            cache_ptr, pages_ptr, request, key, live, page_size, stride_page, stride_slot, IS_PAGED
        )
        values, sf = _load_values(row_ptrs, live, latent, L, BYTES, GROUPS, DOT)
        if GROUPS:
            of_groups = tl.zeros((GROUPS, BLOCK_M, BLOCK_N), tl.float32)
            scores = tl.sum(dot(q_c, values.permute(0, 2, 1), of_groups, INTERPRETED) * sf, 0)
        else:
            scores = dot(q_c, values.T, tl.zeros((BLOCK_M, BLOCK_N), tl.float32), INTERPRETED)
        if R > 0:
            k_pe = _load_rope(row_ptrs, live, rope, L, R, BYTES, DOT)
            scores = dot(q_pe, k_pe.T, scores, INTERPRETED)
        seen = live[None, :]
        if HAS_TAIL:
            seen = seen & (key[None, :] < limit[:, None])
            is_kept = _rows(key < least, GROUPS) | is_finite(values, INTERPRETED)
            values = tl.where(is_kept, values, tl.zeros_like(values))
            if GROUPS:
                sf = tl.where((key < least)[None, None, :] | is_finite(sf, INTERPRETED), sf, 0.0)
        scores = tl.where(seen, scores * sm_scale, float("-inf"))
        new_most = tl.maximum(most, tl.max(scores, axis=1))
        # Of a row that has seen nothing yet e^(-Inf) is 0, where e^(-Inf + Inf) would be NaN.
        base = tl.where(new_most == float("-inf"), 0.0, new_most)
        weights = tl.exp(scores - base[:, None])
        rescale = tl.exp(most - base)
        total = total * rescale + tl.sum(weights, axis=1)
        if GROUPS:
            weights = weights[None, :, :] * sf
        acc = acc * _rows(rescale, GROUPS)
        acc = dot(_fp8.round_to(weights, DOT, INTERPRETED), values, acc, INTERPRETED)
        most = new_most

    if HAS_TAIL:
        for start in range(tl.maximum(first, least), end):
            key = start + tl.arange(0, 1)
            live = key < end
            row_ptrs = _row_ptrs(
                cache_ptr, pages_ptr, request, key, live, page_size, stride_page, stride_slot, IS_PAGED
            )
            value, sf_of_it = _load_values(row_ptrs, live, latent, L, BYTES, GROUPS, DOT)
            kept = is_finite(value, INTERPRETED)
            if GROUPS:
                kept = kept & is_finite(sf_of_it, INTERPRETED)
            acc = tl.where(kept | _rows(start >= limit, GROUPS), acc, float("nan"))
    has_keys = total != 0.0
    out = tl.div_rn(acc, _rows(total, GROUPS) + tl.zeros_like(acc))
    return tl.where(_rows(has_keys, GROUPS), out, 0.0), tl.where(
        has_keys, most + tl.log(total), float("-inf")
    )


@triton.jit
def _mla_decode_kernel(
    q_ptr, cache_ptr, table_ptr, seqlens_ptr, schedule_ptr, tiles_ptr,
    out_ptr, lse_ptr, sums_ptr, sums_lse_ptr, B, num_parts, rows, num_sums, s_q, H, page_size, sm_scale,
    stride_qb, stride_qj, stride_qh, stride_page, stride_slot, stride_tb, stride_schedule,
    L: tl.constexpr, R: tl.constexpr, IS_PAGED: tl.constexpr, BYTES: tl.constexpr, CAUSAL: tl.constexpr,
    IS_RAGGED: tl.constexpr, INVARIANT: tl.constexpr, PIECE_KEYS: tl.constexpr, HAS_TAIL: tl.constexpr,
    GROUPS: tl.constexpr, DOT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_R: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One program attends the keys of one part of the schedule for one tile of rows.

    Grid: (cdiv(rows, BLOCK_M), num_parts). Rows are those of a request, its queries' heads in order. With
    IS_RAGGED what the schedule calls a request is a tile (_mla_pieces.py), and rows is BLOCK_M. A request of
    one piece is written to out and lse, pieces of others to sums and sums_lse. Requests that are not as long
    as the schedule says are left to the merge.
    """
    boundary = schedule_ptr + (1 + tl.program_id(1)) * stride_schedule
    from_request, from_block = tl.load(boundary), tl.load(boundary + 1)
    piece = tl.load(boundary + 2)
    to_request, to_block = tl.load(boundary + stride_schedule), tl.load(boundary + stride_schedule + 1)
    after = to_request + (to_block > 0).to(tl.int32)
    if not IS_RAGGED:  # the caller's, perhaps of another call: nothing in it can be trusted then
        is_ours = is_schedule_of(schedule_ptr, B, num_parts, rows, num_sums, stride_schedule, INVARIANT)
        after = tl.where(is_ours, after, from_request)
    for item in range(from_request, after):
        entry = schedule_ptr + (num_parts + 2 + item) * stride_schedule
        is_whole = tl.load(entry + stride_schedule) - tl.load(entry) == 1
        length = tl.load(entry + 1)
        if IS_RAGGED:
            request, first_row = tl.load(tiles_ptr + item * 4), tl.load(tiles_ptr + item * 4 + 1)
            tokens, first_token = tl.load(tiles_ptr + item * 4 + 2), tl.load(tiles_ptr + item * 4 + 3)
            seqlen = tl.load(seqlens_ptr + request)
            num_rows = tokens * H
        else:
            request, first_row, tokens, first_token = item, tl.program_id(0) * BLOCK_M, s_q, 0
            seqlen = tl.load(seqlens_ptr + request)
            num_rows = tl.where(seqlen == length, s_q * H, 0)
        row = first_row + tl.arange(0, BLOCK_M)
        is_row = row < num_rows
        query = row // H
        wide = tl.zeros((), tl.int64)  # offsets are int64
        q_ptrs = q_ptr + (wide + request) * stride_qb + (wide + first_token + query) * stride_qj
        q_ptrs += (row % H) * stride_qh
        limit, least, largest = seqlen + tl.zeros_like(row), seqlen, seqlen
        if CAUSAL:
            limit -= tokens - 1 - query
            least -= tokens - 1 - first_row // H
            largest -= tokens - 1 - (tl.minimum(first_row + BLOCK_M, num_rows) - 1) // H
        begin = tl.where(item == from_request, from_block * 64, 0)
        end = tl.where(item == to_request, to_block * 64, length)
        end = tl.where(num_rows > 0, end, begin)
        pages_ptr = table_ptr + (wide + request) * stride_tb
        for first in range(begin, tl.maximum(end, begin + 1), PIECE_KEYS):
            until = tl.minimum(tl.minimum(end, largest), first + PIECE_KEYS)
            out, lse = _attend_piece(
                q_ptrs, is_row, limit, least, cache_ptr, pages_ptr, request, first, until,
                page_size, sm_scale, stride_page, stride_slot,
                L, R, IS_PAGED, BYTES, HAS_TAIL, GROUPS, DOT, BLOCK_M, BLOCK_N, BLOCK_L, BLOCK_R,
                INTERPRETED,
            )  # fmt: skip
            if GROUPS:
                col = (tl.arange(0, GROUPS) * 128)[:, None, None] + tl.arange(0, 128)[None, None, :]
            else:
                col = tl.arange(0, BLOCK_L)[None, :]
            mask = _rows(is_row, GROUPS) & (col < L)
            if is_whole:
                at = (wide + (first_token if IS_RAGGED else request * s_q)) * H + row
                rounded = _fp8.round_to(out, out_ptr.dtype.element_ty, INTERPRETED)
                tl.store(out_ptr + _rows(at, GROUPS) * L + col, rounded, mask=mask)
                tl.store(lse_ptr + at, lse, mask=is_row)
            else:
                at = (wide + piece) * rows + (row - first_row if IS_RAGGED else row)
                tl.store(sums_ptr + _rows(at, GROUPS) * L + col, out, mask=mask)
                tl.store(sums_lse_ptr + at, lse, mask=is_row)
            piece += 1


def launch(
    q: Tensor,
    cache: Tensor,
    block_table: Tensor | None,
    seqlens: Tensor,
    *,
    sm_scale: float,
    v_dim: int = 512,
    causal: bool = True,
    cu_seqlens_q: Tensor | None = None,
    schedule: Tensor | None = None,
    batch_invariant: bool = False,
    out: tuple[Tensor, Tensor],
) -> None:
    result, lse = out
    if lse.numel() == 0:
        return
    B, H, R = seqlens.size(0), q.size(-2), q.size(-1) - v_dim
    is_paged, is_ragged = block_table is not None, cu_seqlens_q is not None
    row_bytes = _alignment(cache) if cache.dtype == torch.uint8 else 0
    is_grouped = row_bytes > 0 and q.dtype == torch.bfloat16
    dtype = q.dtype if is_grouped else dot_dtype(q.dtype, cache.dtype)
    target = _fp8.target_of(q.device)
    p = plan(H, dtype, is_grouped, target)
    if is_ragged:
        s_q, rows, items = 0, p.BLOCK_M, B + q.size(0) * H // p.BLOCK_M
        tiles, lengths = seqlens.new_empty(items, 4), seqlens.new_empty(items)
        _tiles_kernel[(B + 1,)](
            cu_seqlens_q, seqlens, tiles, lengths, B, H, items,
            CAUSAL=causal, BLOCK_M=p.BLOCK_M, BLOCK=256, num_warps=4,
        )  # fmt: skip
        strides_q = (0, *q.stride()[:2])
    else:
        s_q, rows, items = q.size(1), q.size(1) * H, B
        tiles, lengths, strides_q = seqlens, seqlens, q.stride()[:3]
    capacity = cache.size(1) * (block_table.size(1) if is_paged else 1)
    fixed_pieces = max(triton.cdiv(capacity, PIECE_KEYS), 1) if batch_invariant else 0
    at_once = items_at_once(items, fixed_pieces, rows, v_dim)
    num_parts = num_parts_for(rows, p, target)
    if schedule is not None and at_once == items:
        num_parts = schedule.size(0) - items - 3
    else:
        schedule = None
    pieces = at_once * fixed_pieces if batch_invariant else items + num_parts
    sums, sums_lse = lse.new_empty(pieces, rows, v_dim), lse.new_empty(pieces, rows)
    BLOCK_L = max(triton.next_power_of_2(v_dim), 16)
    for first in range(0, items, at_once):
        some = slice(first, min(first + at_once, items))
        count = some.stop - first
        # Of a ragged batch some tiles, whose requests are numbered as they are.
        mine = slice(None) if is_ragged else some
        table = block_table[mine] if is_paged else seqlens[mine]
        ours = schedule
        if ours is None:
            ours = seqlens.new_empty(num_parts + count + 3, 4)
            options = {"rows": rows, "num_parts": num_parts, "batch_invariant": batch_invariant}
            mla_schedule.launch(lengths[some], **options, out=(ours,))
        _mla_decode_kernel[(triton.cdiv(rows, p.BLOCK_M), num_parts)](
            q[mine], cache if is_paged else cache[mine], table, seqlens[mine], ours, tiles[some],
            result[mine], lse[mine], sums, sums_lse,
            count, num_parts, rows, pieces, s_q, H, max(cache.size(1), 1), sm_scale,
            *strides_q, *cache.stride()[:2], table.stride(0), ours.stride(0),
            L=v_dim, R=R, IS_PAGED=is_paged, BYTES=row_bytes, CAUSAL=causal, IS_RAGGED=is_ragged,
            INVARIANT=batch_invariant, PIECE_KEYS=PIECE_KEYS if batch_invariant else WHOLE,
            HAS_TAIL=causal and (is_ragged or s_q > 1), GROUPS=BLOCK_L // 128 if is_grouped else 0,
            DOT=_TRITON[dtype], BLOCK_M=p.BLOCK_M, BLOCK_N=p.BLOCK_N, BLOCK_L=BLOCK_L,
            BLOCK_R=max(triton.next_power_of_2(R), 16), INTERPRETED=target.interpreted,
            num_warps=p.num_warps, num_stages=p.num_stages,
        )  # fmt: skip
        _merge_kernel[(count * triton.cdiv(rows, MERGE_ROWS),)](
            sums, sums_lse, ours, seqlens[mine], tiles[some], result[mine], lse[mine],
            count, num_parts, rows, H, pieces, ours.stride(0),
            L=v_dim, IS_RAGGED=is_ragged, INVARIANT=batch_invariant, BLOCK_ROWS=MERGE_ROWS, BLOCK_L=BLOCK_L,
            INTERPRETED=target.interpreted, num_warps=4,
        )  # fmt: skip
