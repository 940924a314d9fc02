"""Argument checks. Every message reads "<op>: <argument>: expected <what>, got <what>[; <what to do>]".

csrc/common/check.h says the same words; tests/ops/test_contract.py holds the two together.
"""

import math
import os
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

FLOAT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def one_of(words: Sequence[str]) -> str:
    """["a", "b", "c"] -> "a, b or c"."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1]


def expect(ok: bool, op: str, arg: str, expected: object, got: object, todo: str = "") -> None:
    """Raise ValueError unless ok. Works on symbolic sizes, where it becomes a guard."""
    if ok is True:
        return  # nothing is symbolic: torch's check costs two microseconds
    torch._check_value(
        ok, lambda: f"{op}: {arg}: expected {expected}, got {got}" + (f"; {todo}" if todo else "")
    )


def expect_dim(op: str, arg: str, t: Tensor, dim: int) -> None:
    expect(t.dim() == dim, op, arg, f"a {dim}-D tensor", f"{t.dim()}-D")


def expect_min_dim(op: str, arg: str, t: Tensor, dim: int) -> None:
    expect(t.dim() >= dim, op, arg, f"a tensor of at least {dim} dimension{'s' * (dim > 1)}", f"{t.dim()}-D")


def expect_dtype(op: str, arg: str, dtype: torch.dtype, allowed: Sequence[torch.dtype]) -> None:
    if dtype not in allowed:
        expect(False, op, arg, one_of([dtype_name(d) for d in allowed]), dtype_name(dtype))


def expect_shape(op: str, arg: str, t: Tensor, shape: Sequence[int]) -> None:
    same = t.dim() == len(shape)
    for got, want in zip(t.shape, shape, strict=False):
        same = same and got == want
    expect(same, op, arg, f"shape {list(shape)}", f"{list(t.shape)}")


def expect_device(op: str, arg: str, t: Tensor, device: torch.device, owner: str) -> None:
    if t.device != device:
        expect(False, op, arg, f"device {device} (that of {owner})", t.device, f"move {arg} there")


def expect_last_dim_contiguous(op: str, arg: str, t: Tensor) -> None:
    # A dimension of one element has no meaningful stride.
    ok = t.size(-1) <= 1 or t.stride(-1) == 1
    expect(
        ok, op, arg, "a contiguous last dimension (stride 1)", f"stride {t.stride(-1)}", "call .contiguous()"
    )


def expect_contiguous(op: str, arg: str, t: Tensor) -> None:
    expect(t.is_contiguous(), op, arg, "a contiguous tensor", "a strided one", "allocate it with torch.empty")


def expect_offsets(op: str, offsets: Tensor, num_experts: int, rows: int, owner: str, t: Tensor) -> None:
    """`expert_offsets`: [num_experts + 1] int32 beside `t`, the argument `owner`, which has `rows` rows."""
    arg, wanted = "expert_offsets", f"a non-decreasing sequence within [0, {rows}]"
    _expect_int32(op, arg, offsets, num_experts + 1, owner, t)
    if not _can_read(offsets):
        return
    bounds = offsets.tolist()
    for expert in range(num_experts):
        begin, end = bounds[expert], bounds[expert + 1]
        expect(begin <= end, op, arg, wanted, f"{begin} before {end} at expert {expert}")
    expect(bounds[0] >= 0, op, arg, wanted, f"{bounds[0]} at the start")
    expect(bounds[-1] <= rows, op, arg, wanted, f"{bounds[-1]} at the end")


def expect_counts(op: str, counts: Tensor, num_experts: int, rows: int, owner: str, t: Tensor) -> None:
    """`expert_counts`: [num_experts] int32 beside `t`, the argument `owner`, with `rows` rows an expert."""
    arg = "expert_counts"
    _expect_int32(op, arg, counts, num_experts, owner, t)
    if not _can_read(counts):
        return
    for expert, count in enumerate(counts.tolist()):
        expect(0 <= count <= rows, op, arg, f"counts within [0, {rows}]", f"{count} at expert {expert}")


def expect_slots(op: str, slots: Tensor, num_tokens: int, num_slots: int, owner: str, t: Tensor) -> None:
    """`slot_mapping`: [num_tokens] beside `t`, the argument `owner`; -1 is no slot."""
    arg = "slot_mapping"
    expect_dtype(op, arg, slots.dtype, (torch.int32, torch.int64))
    expect_shape(op, arg, slots, (num_tokens,))
    expect_last_dim_contiguous(op, arg, slots)
    expect_device(op, arg, slots, t.device, owner)
    if not _can_read(slots):
        return
    for token, slot in enumerate(slots.tolist()):
        wanted = f"slots within [-1, {num_slots - 1}]"
        expect(-1 <= slot < num_slots, op, arg, wanted, f"{slot} at token {token}")


def expect_block_table(op: str, block_table: Tensor, owner: str, t: Tensor) -> None:
    """`block_table`: [B, max_pages] int32 beside `t`, the argument `owner`."""
    expect_dim(op, "block_table", block_table, 2)
    expect_dtype(op, "block_table", block_table.dtype, (torch.int32,))
    expect_last_dim_contiguous(op, "block_table", block_table)
    expect_device(op, "block_table", block_table, t.device, owner)


def expect_seqlens(
    op: str,
    seqlens: Tensor,
    B: int,
    q: Tensor,
    cache: Tensor,
    block_table: Tensor | None,
    most: float = math.inf,
) -> None:
    """`seqlens`: [B] int32 tokens, at most `most`, in the pages of block_table or in a dense cache."""
    _expect_int32(op, "seqlens", seqlens, B, "q", q)
    if not _can_read(seqlens):
        return
    page_size = cache.size(1)
    capacity = min(page_size * (1 if block_table is None else block_table.size(1)), most)
    for request, tokens in enumerate(seqlens.tolist()):
        wanted = f"lengths within [0, {capacity}]"
        expect(0 <= tokens <= capacity, op, "seqlens", wanted, f"{tokens} at request {request}")
        if block_table is None:
            continue
        used = block_table[request, : -(-tokens // max(page_size, 1))]
        for block, page in enumerate(used.tolist()):
            wanted = f"pages within [0, {cache.size(0) - 1}]"
            got = f"{page} at request {request}, block {block}"
            expect(0 <= page < cache.size(0), op, "block_table", wanted, got)


def expect_cu_seqlens(
    op: str, arg: str, offsets: Tensor, like: Tensor | None, rows: int, owner: str, t: Tensor
) -> None:
    """`arg`: [B + 1] int32 offsets of the sequences that `rows` rows are; B + 1 is that of `like`, if any."""
    expect_dim(op, arg, offsets, 1)
    num_bounds = offsets.size(0) if like is None else like.size(0)
    expect(num_bounds >= 1, op, arg, "at least one element", num_bounds)
    _expect_int32(op, arg, offsets, num_bounds, owner, t)
    if not _can_read(offsets):
        return
    bounds, wanted = offsets.tolist(), f"a non-decreasing sequence from 0 to {rows}"
    expect(bounds[0] == 0, op, arg, wanted, f"{bounds[0]} at the start")
    for b, (begin, end) in enumerate(pairwise(bounds)):
        expect(begin <= end, op, arg, wanted, f"{begin} before {end} at sequence {b}")
    expect(bounds[-1] == rows, op, arg, wanted, f"{bounds[-1]} at the end")


def expect_schedule(op: str, schedule: Tensor, seqlens: Tensor, rows: int, batch_invariant: bool) -> None:
    """`schedule`: what mla_schedule makes of seqlens and rows, for any number of parts."""
    arg, B = "schedule", seqlens.size(0)
    expect_dim(op, arg, schedule, 2)
    expect_dtype(op, arg, schedule.dtype, (torch.int32,))
    ok = schedule.size(1) == 4 and schedule.size(0) >= B + 4
    expect(ok, op, arg, f"shape [{B} + num_parts + 3, 4]", list(schedule.shape))
    expect_last_dim_contiguous(op, arg, schedule)
    expect_device(op, arg, schedule, seqlens.device, "q")
    if not _can_read(schedule):
        return
    num_parts = schedule.size(0) - B - 3
    wanted, got = [B, num_parts, rows, int(batch_invariant)], schedule[0].tolist()
    names = "(B, num_parts, rows, batch_invariant)"
    expect(got == wanted, op, arg, f"one made for {names} = {wanted}", got)
    made_for = schedule[num_parts + 2 :, 1].tolist()
    for request, tokens in enumerate(seqlens.tolist()):
        told = f"one of {made_for[request]} tokens, not {tokens}, at request {request}"
        expect(made_for[request] == tokens, op, arg, "one made for these seqlens", told)


def expect_lengths(op: str, seqlens: Tensor) -> None:
    if not _can_read(seqlens):
        return
    for request, tokens in enumerate(seqlens.tolist()):
        expect(tokens >= 0, op, "seqlens", "lengths of at least 0", f"{tokens} at request {request}")


def expect_indices(op: str, indices: Tensor, lengths: Tensor | None, num_slots: int) -> None:
    """`indices`: [..., topk] below num_slots in their first `topk_length` entries; negative ones are none."""
    if not _can_read(indices):
        return
    rows, topk = math.prod(indices.shape[:-1]), indices.size(-1)
    counted = indices.reshape(rows, topk)
    if lengths is not None:
        lengths = lengths.reshape(rows)
        wrong = ((lengths < 0) | (lengths > topk)).nonzero()
        if len(wrong):
            row = int(wrong[0])
            got = f"{int(lengths[row])} at row {row}"
            expect(False, op, "topk_length", f"lengths within [0, {topk}]", got)
        beyond = torch.arange(topk, device=indices.device) >= lengths[:, None]
        counted = counted.masked_fill(beyond, -1)
    # As int64: a number of slots beyond int32 would be taken for another one.
    wrong = (counted.long() >= num_slots).nonzero()
    if len(wrong):
        row, entry = wrong[0].tolist()
        got = f"{int(counted[row, entry])} at row {row}, entry {entry}"
        expect(False, op, "indices", f"slots below {num_slots}", got)


def _expect_int32(op: str, arg: str, t: Tensor, size: int, owner: str, beside: Tensor) -> None:
    expect_dtype(op, arg, t.dtype, (torch.int32,))
    expect_shape(op, arg, t, (size,))
    expect_last_dim_contiguous(op, arg, t)
    expect_device(op, arg, t, beside.device, owner)


def _can_read(t: Tensor) -> bool:
    """Whether to look at values: always on the CPU; on a GPU, where that waits for it, under MOELA_DEBUG."""
    if is_fake(t) or t.is_meta:
        return False
    return t.is_cpu or os.environ.get("MOELA_DEBUG", "0") not in ("", "0")
