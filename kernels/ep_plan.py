"""Triton backend of ``ep_plan``: the sort of ``moe_permute``, with ranks in the place of experts.

A token that has several experts on a rank is sorted by the first of them; the others take its place over.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from moela.kernels import moe_permute
from torch import Tensor


@dataclass(frozen=True)
class Plan:
    BLOCK_T: int  # tokens of one program
    BLOCK_K: int
    num_warps: int


def plan(topk: int) -> Plan:
    """Some thousand pairs a program."""
    block_k = triton.next_power_of_2(topk)
    return Plan(BLOCK_T=max(1, 1024 // block_k), BLOCK_K=block_k, num_warps=4)


@triton.jit
def load_owners(ids_ptr, pair, mask, num_experts, size, rest):
    """The rank of each pair's expert, -1 where the pair is dropped or does not exist."""
    ids = tl.load(ids_ptr + pair, mask=mask, other=-1)
    is_here = (ids >= 0) & (ids < num_experts)
    ids = tl.where(is_here, ids, 0).to(tl.int32)
    end = rest * (size + 1)  # the experts before it are on ranks that have one more
    owners = tl.where(ids < end, ids // (size + 1), rest + (ids - end) // tl.maximum(size, 1))
    return tl.where(is_here, owners, -1)


@triton.jit
def _owners_kernel(
    ids_ptr, owners_ptr,
    T, topk, num_experts, size, rest,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program names the ranks of BLOCK_T tokens [T, topk], each once: -1 where an earlier k has it.

    Grid: (cdiv(T, BLOCK_T),). Invariant: BLOCK_K is at least topk.
    """
    token = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    k = tl.arange(0, BLOCK_K)[None, :]
    pair, mask = token[:, None] * topk + k, (token[:, None] < T) & (k < topk)
    owners = load_owners(ids_ptr, pair, mask, num_experts, size, rest)
    is_again = owners < 0
    for j in range(topk):
        earlier = load_owners(ids_ptr, token * topk + j, token < T, num_experts, size, rest)
        is_again = is_again | ((j < k) & (earlier[:, None] == owners))
    tl.store(owners_ptr + pair, tl.where(is_again, -1, owners), mask=mask)


@triton.jit
def _slots_kernel(
    ids_ptr, places_ptr, slots_ptr, send_rows_ptr,
    T, topk, num_experts, size, rest,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program gives the pairs of BLOCK_T tokens the place of the one that has their rank, and writes the
    token there.

    Grid: (cdiv(T, BLOCK_T),). Invariant: of a token's pairs of one rank exactly one has a place.
    """
    token = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    k = tl.arange(0, BLOCK_K)[None, :]
    pair, mask = token[:, None] * topk + k, (token[:, None] < T) & (k < topk)
    owners = load_owners(ids_ptr, pair, mask, num_experts, size, rest)
    slots = tl.full([BLOCK_T, BLOCK_K], -1, tl.int32)
    for j in range(topk):
        other = load_owners(ids_ptr, token * topk + j, token < T, num_experts, size, rest)
        place = tl.load(places_ptr + token * topk + j, mask=token < T, other=-1)
        is_same = (other[:, None] == owners) & (owners >= 0)
        slots = tl.where(is_same & (place[:, None] >= 0), place[:, None], slots)
        tl.store(send_rows_ptr + place, token.to(tl.int32), mask=place >= 0)
    tl.store(slots_ptr + pair, slots, mask=mask)


def launch(topk_ids: Tensor, num_experts: int, num_ranks: int, *, out: tuple[Tensor, Tensor, Tensor]) -> None:
    send_rows, counts, slots = out
    T, topk = topk_ids.shape
    send_rows.fill_(-1)
    if T * topk == 0:
        counts.zero_()
        return
    ids, p = topk_ids.contiguous(), plan(topk)
    size, rest = divmod(num_experts, num_ranks)
    grid, blocks = (triton.cdiv(T, p.BLOCK_T),), {"BLOCK_T": p.BLOCK_T, "BLOCK_K": p.BLOCK_K}
    owners, places = torch.empty_like(slots), torch.empty_like(slots)
    _owners_kernel[grid](ids, owners, T, topk, num_experts, size, rest, **blocks, num_warps=p.num_warps)
    offsets = torch.empty(num_ranks + 1, dtype=torch.int32, device=ids.device)
    no_rows = ids.new_empty((T, 0), dtype=torch.uint8)
    moe_permute.launch(no_rows, owners, num_ranks, out=(no_rows, offsets, places))
    torch.sub(offsets[1:], offsets[:-1], out=counts)
    _slots_kernel[grid](
        ids, places, slots, send_rows, T, topk, num_experts, size, rest, **blocks, num_warps=p.num_warps
    )
