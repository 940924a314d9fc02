"""How ranks exchange rows on devices, for the Triton kernels that do: waiting, telling, finding rows.

Memory, parity of epochs, headers, status: csrc/cuda/block/ep_memory.h, of which moela.ep.device is the
mirror; the protocol is that of csrc/cuda/ep_dispatch/DESIGN.md. Ranks store into each other's memory and do
atomics there, as those of torch's symmetric memory do.

A wait is for other ranks, never for another block of the same kernel, and it ends: at the deadline the block
goes on without that rank. What decides how a block goes on is the same for all of its threads only if one of
them has seen it for all: flags are read by atomics, each by one thread, which tells the others; the clock is
read by every thread, and the latest counts.
"""

import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from moela.ep.device import DeviceExchange, Fault
from moela.kernels import _fp8
from torch import Tensor

NOT_RELEASED, NOT_ARRIVED, ABORTED, DISAGREEMENT, CAPACITY = (tl.constexpr(fault.value) for fault in Fault)
ONE_FAILED = tl.constexpr(1 << 16)  # of `done`, beside the number of blocks

NUM_WARPS = 4


class Column(NamedTuple):
    """A column of the wire row, and the tensor that it comes from or goes to. In elements."""

    ptr: Tensor  # rows of the widest integers that address, stride and width allow
    stride: int
    size: int  # of a row
    offset: int  # in the wire row


def columns_of(tensors: Iterable[Tensor], offsets: Iterable[int]) -> tuple[Column, ...]:
    """tensors: [*, w] uint8, rows may be strided. Those without bytes are left out."""
    columns = []
    for t, offset in zip(tensors, offsets, strict=True):
        if t.numel():
            bits = t.data_ptr() | t.storage_offset() | t.stride(0) | t.size(1)
            dtypes = (torch.int64, torch.int32, torch.int16, torch.uint8)
            t = t.view(next(d for d in dtypes if bits % d.itemsize == 0))
            columns.append(Column(t, t.stride(0), t.size(1), offset // t.itemsize))
    return tuple(columns)


def grid_of(exchange: DeviceExchange, rows: int) -> tuple[int]:
    """A block per row, at most one per multiprocessor: those that wait leave room to others on the device."""
    return (max(1, min(rows, _fp8.target_of(exchange.bases.device).multiprocessors)),)


def options(exchange: DeviceExchange, num_warps: int = NUM_WARPS) -> dict[str, Any]:
    """What every kernel of an exchange is compiled for."""
    target = _fp8.target_of(exchange.bases.device)
    clock = "host" if target.interpreted else "cuda" if target.lanes == 32 else "hip"
    return {
        "RANKS": triton.next_power_of_2(exchange.num_ranks),
        "CLOCK": clock,
        "THREADS": num_warps * target.lanes,
        "num_warps": num_warps,
    }


def host_clock() -> int:
    return time.monotonic_ns()


host_clock.__triton_builtin__ = True  # may be named in a kernel, of which only the interpreter calls it


# --- where things are -------------------------------------------------------------------------------------


@triton.jit
def header_at(x, epoch, source):
    """By source and parity: count, row_bytes, kind, is_abort, int32 each. Offsets in bytes, int64."""
    return 16 * (x.num_ranks + (epoch & 1) * x.num_ranks + source)


@triton.jit
def rows_at(x, epoch, source):
    """[max_tokens, row_bytes], packed."""
    slot = (epoch & 1) * x.num_ranks + source
    return tl.cdiv(48 * x.num_ranks, 128) * 128 + slot * x.max_tokens * x.max_row_bytes


@triton.jit
def wire_pointer(address, dtype: tl.constexpr):
    """Wire rows, and the columns in them, begin at multiples of 16."""
    return tl.multiple_of(address.to(tl.pointer_type(dtype)), 16)


@triton.jit
def find_rows(rows, ends):
    """Of numbers in the order of ranks [N]: whose rows they are, and which of those. ends: inclusive sums."""
    is_past = ends[None, :] <= rows[:, None]  # [N, RANKS]
    before = tl.max(tl.where(is_past, ends[None, :], 0), 1)
    return tl.sum(is_past.to(tl.int32), 1), rows - before


@triton.jit
def find_row(row, ends):
    is_past = ends <= row
    return tl.sum(is_past.to(tl.int32), 0), row - tl.max(tl.where(is_past, ends, 0), 0)


@triton.jit
def number_slots(slots, k):
    """The number of each slot [BLOCK_K] among a token's different ones, in their order, which is that of the
    ranks; -1 where there is none, or an earlier k has it."""
    is_again = (slots[:, None] == slots[None, :]) & (k[None, :] < k[:, None])
    is_first = (slots >= 0) & (tl.max(is_again.to(tl.int32), 1) == 0)
    is_lower = is_first[None, :] & (slots[None, :] < slots[:, None])
    return tl.where(is_first, tl.sum(is_lower.to(tl.int32), 1), -1)


@triton.jit
def take(values, number, j):
    """The value [N] -> [] that has number j."""
    return tl.sum(tl.where(number == j, values, 0), 0)


# --- waiting ----------------------------------------------------------------------------------------------


@triton.jit
def read_clock(CLOCK: tl.constexpr, THREADS: tl.constexpr):
    """Nanoseconds, the same number for all threads: a maximum over as many clocks as there are threads."""
    if CLOCK == "host":
        return host_clock()
    thread = tl.arange(0, THREADS)
    if CLOCK == "cuda":
        clocks = tl.inline_asm_elementwise(
            "mov.u64 $0, %globaltimer;", "=l,r", [thread], dtype=tl.int64, is_pure=False, pack=1
        )
        return tl.max(clocks, 0)
    clocks = tl.inline_asm_elementwise(
        "s_memrealtime $0\ns_waitcnt lgkmcnt(0)", "=s,v", [thread], dtype=tl.int64, is_pure=False, pack=1
    )
    return tl.max(clocks, 0) * 10  # of 100 MHz


@triton.jit
def barrier(CLOCK: tl.constexpr, THREADS: tl.constexpr):
    """What the block has stored is in memory before what comes after. A barrier of AMD does not wait for the
    stores of the threads that come to it, and the release of one thread waits for its own only."""
    if CLOCK == "hip":
        thread = tl.arange(0, THREADS)
        tl.inline_asm_elementwise(
            "s_waitcnt vmcnt(0)\nv_mov_b32 $0, $1", "=v,v", [thread], dtype=tl.int32, is_pure=False, pack=1
        )
    tl.debug_barrier()


@triton.jit
def have_risen(flags, is_rank, epoch):
    """Whether each flag has risen to the epoch; true where there is no rank."""
    flag = tl.atomic_add(flags, 0, mask=is_rank, sem="acquire", scope="sys")
    return (flag >= epoch) | (is_rank == 0)


@triton.jit
def wait_for(flags, is_rank, epoch, deadline_ns, CLOCK: tl.constexpr, THREADS: tl.constexpr):
    """have_risen, at the deadline at the latest. They are asked for once more after the loop: Triton 3.6 does
    not compile one that hands on a tensor."""
    start = read_clock(CLOCK, THREADS)
    elapsed = start - start
    while (tl.min(have_risen(flags, is_rank, epoch).to(tl.int32), 0) == 0) & (elapsed < deadline_ns):
        elapsed = read_clock(CLOCK, THREADS) - start
    is_open = have_risen(flags, is_rank, epoch)
    tl.debug_barrier()  # what one thread has acquired, all may read
    return is_open


@triton.jit
def report(x, fault, epoch, RANKS: tl.constexpr):
    """fault: [RANKS], 0: none. The status keeps the last of several."""
    words = (epoch << 32) | (tl.arange(0, RANKS) << 8) | fault
    word = tl.max(tl.where(fault != 0, words, 0), 0)
    if word != 0:
        tl.store(x.status, word)


@triton.jit
def report_capacity(x, epoch):
    tl.store(x.status, (epoch << 32) | (x.rank << 8) | CAPACITY)


@triton.jit
def wait_released(x, epoch, RANKS: tl.constexpr, CLOCK: tl.constexpr, THREADS: tl.constexpr):
    """Whether each peer [RANKS] has released the epoch before the last, and whether all have."""
    ranks = tl.arange(0, RANKS)
    flags = (tl.load(x.bases + x.rank) + 8 * (x.num_ranks + ranks)).to(tl.pointer_type(tl.int64))
    is_open = wait_for(flags, ranks < x.num_ranks, epoch - 2, x.deadline_ns, CLOCK, THREADS)
    report(x, tl.where(is_open, 0, NOT_RELEASED), epoch, RANKS)
    return is_open, tl.min(is_open.to(tl.int32), 0) != 0


@triton.jit
def wait_arrived(x, epoch, counts_ptr, RANKS: tl.constexpr, CLOCK: tl.constexpr, THREADS: tl.constexpr):
    """How many rows have come from each source [RANKS], whether they are to be taken, whether it said
    anything. counts_ptr: how many have to come, None: as many as the source says."""
    ranks = tl.arange(0, RANKS)
    is_rank = ranks < x.num_ranks
    base = tl.load(x.bases + x.rank)
    flags = (base + 8 * ranks).to(tl.pointer_type(tl.int64))
    is_here = wait_for(flags, is_rank, epoch, x.deadline_ns, CLOCK, THREADS) & is_rank
    header = (base + header_at(x, epoch, ranks)).to(tl.pointer_type(tl.int32))
    count = tl.load(header, mask=is_here, other=0)
    agrees = tl.load(header + 1, mask=is_here, other=0) == x.row_bytes
    agrees &= tl.load(header + 2, mask=is_here, other=0) == tl.cast(x.kind, tl.int32)
    if counts_ptr is not None:
        agrees &= count == tl.load(counts_ptr + ranks, mask=is_rank, other=0)
    fault = tl.where(agrees, 0, DISAGREEMENT)
    fault = tl.where(tl.load(header + 3, mask=is_here, other=0) != 0, ABORTED, fault)
    fault = tl.where(is_here, fault, NOT_ARRIVED)
    report(x, tl.where(is_rank, fault, 0), epoch, RANKS)
    is_taken = is_rank & (fault == 0)
    return tl.where(is_taken, count, 0), is_taken, is_here


# --- telling ----------------------------------------------------------------------------------------------


@triton.jit
def end_block(done_ptr, is_well, CLOCK: tl.constexpr, THREADS: tl.constexpr):
    """Ends a block's part. Whether it is the last to end, which then knows that the accesses of all blocks
    are over; whether all blocks were well, if it is."""
    barrier(CLOCK, THREADS)
    before = tl.atomic_add(done_ptr, tl.where(is_well, 1, ONE_FAILED + 1), sem="acq_rel", scope="gpu")
    is_last = before % ONE_FAILED == tl.num_programs(0) - 1
    if is_last:
        tl.store(done_ptr, 0)
    return is_last, is_well & (before < ONE_FAILED)


@triton.jit
def raise_arrived(
    x, epoch, counts_ptr, is_open, is_abort,
    RANKS: tl.constexpr, CLOCK: tl.constexpr, THREADS: tl.constexpr,
):  # fmt: skip
    """Tells every peer that its rows are there, or that this rank gives the epoch up; in the last block. A
    peer that has not released its memory is left alone."""
    ranks = tl.arange(0, RANKS)
    is_told = is_open & (ranks < x.num_ranks)
    bases = tl.load(x.bases + ranks, mask=is_told, other=0)
    header = (bases + header_at(x, epoch, x.rank)).to(tl.pointer_type(tl.int32))
    tl.store(header, tl.load(counts_ptr + ranks, mask=is_told, other=0), mask=is_told)
    tl.store(header + 1, x.row_bytes, mask=is_told)
    tl.store(header + 2, tl.cast(x.kind, tl.int32), mask=is_told)
    tl.store(header + 3, tl.cast(is_abort, tl.int32), mask=is_told)
    barrier(CLOCK, THREADS)
    flags = (bases + 8 * x.rank).to(tl.pointer_type(tl.int64))
    tl.atomic_xchg(flags, epoch, mask=is_told, sem="release", scope="sys")
    tl.store(x.epochs, epoch)


@triton.jit
def raise_released(x, epoch, is_here, RANKS: tl.constexpr):
    """Tells every source that has said something that what it sent is not needed any more; in the last
    block."""
    ranks = tl.arange(0, RANKS)
    bases = tl.load(x.bases + ranks, mask=is_here, other=0)
    flags = (bases + 8 * (x.num_ranks + x.rank)).to(tl.pointer_type(tl.int64))
    tl.atomic_xchg(flags, epoch, mask=is_here, sem="release", scope="sys")
    tl.store(x.epochs + 1, epoch)
