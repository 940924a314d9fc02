"""The definition of the five kernels of an exchange, in plain torch, over memory of the host.

What moela.kernels.ep_dispatch and ep_combine do in Triton, and csrc/cuda/ep_dispatch and ep_combine on
Hopper. Ranks are threads or processes that see each other's memory, each with its DeviceExchange. A call
waits as a kernel does, and ends as a kernel does: with a status at the deadline, never with an exception.
"""

import ctypes
import time

import torch
from moela.ep.device import HEADER_WORDS, DeviceExchange, Fault, Memory, status_word
from torch import Tensor


def send(
    x: DeviceExchange,
    columns: list[Tensor],
    offsets: list[int],
    slots: Tensor,
    counts: Tensor,
    is_abort: bool,
) -> None:
    """Row t of every column to the ranks that slots[t] names, to each of them once; what is between the
    columns of a wire row travels as zeros.

    columns: [T, w] uint8, rows may be strided. offsets: of the columns in the wire row, multiples of 16.
    slots: [T, topk] int32, the place in send order of the row that carries (t, k), equal for those of one
    rank, -1: none. counts: [R] int32, rows to each rank. is_abort, with no tokens and counts of zero: this
    rank gives the epoch up.
    """
    epoch = int(x.epochs[0]) + 1
    is_open = _wait_released(x, epoch)
    wire = torch.zeros((slots.size(0), x.row_bytes), dtype=torch.uint8)
    for column, offset in zip(columns, offsets, strict=True):
        wire[:, offset : offset + column.size(1)] = column
    for rank, (first, count) in enumerate(_ranges(counts)):
        if is_open[rank]:
            t, k = ((slots >= first) & (slots < first + count)).nonzero(as_tuple=True)
            _rows(x, rank, epoch, x.rank, count)[slots[t, k].long() - first] = wire[t]
    _end_sending(x, epoch, counts, is_open, is_abort)


def place(
    x: DeviceExchange,
    layout: str,
    ids_offset: int,
    topk: int,
    first_expert: int,
    num_local_experts: int,
    capacity: int,
    positions: Tensor,
    experts: Tensor,
) -> None:
    """The places of what has come in a layout that is sorted by expert; `receive` of the same epoch follows.

    A place is a number in received order, then by k, among the pairs (row, k) of the same expert: after those
    of lower experts with layout "expert", in capacity places for each expert with "masked". capacity: of all
    places, or of an expert's. positions: [R * max_tokens, topk] int32, is set to the place of every pair, -1:
    none, also for lack of room. experts: int32, "expert": expert_offsets [num_local_experts + 1]; "masked":
    counts [num_local_experts]; both of all that came.
    """
    epoch = int(x.epochs[1]) + 1
    ids, _ = _ids_of(x, _come(x, epoch, None)[0], ids_offset, topk, first_expert, num_local_experts)
    positions.fill_(-1)
    flat = ids.flatten()  # [N * topk]
    is_here = flat >= 0
    counts = flat[is_here].bincount(minlength=num_local_experts)[:num_local_experts]
    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    order = torch.where(is_here, flat, num_local_experts).argsort(stable=True)
    number = torch.empty_like(order)
    number[order] = torch.arange(order.numel())
    expert = flat.clamp(min=0).long()
    if layout == "expert":
        places, needed = number, int(offsets[-1])
        has_room = places < capacity
        experts.copy_(offsets)
    else:
        within = number - offsets[expert]
        places, needed = within + expert * capacity, int(counts.max()) if num_local_experts else 0
        has_room = within < capacity
        experts.copy_(counts)
    positions[: ids.size(0)] = torch.where(is_here & has_room, places, -1).view_as(ids).int()
    if needed > capacity:
        _report(x, Fault.CAPACITY, x.rank, epoch)


def receive(
    x: DeviceExchange,
    layout: str,
    outs: list[Tensor],
    offsets: list[int],
    ids_offset: int,
    weights_offset: int,
    topk: int,
    first_expert: int,
    num_local_experts: int,
    positions: Tensor | None,
    experts: Tensor | None,
    topk_ids: Tensor | None,
    topk_weights: Tensor | None,
    recv_counts: Tensor,
    capacity: int,
) -> None:
    """Every column of what has come to its places, then the memory is given back.

    outs: [places, w] uint8, contiguous, of the columns at offsets in the wire row; places is capacity,
    "masked": num_local_experts * capacity. Places past what came are zeros. positions and experts: what
    `place` has written; None with "compact", where received row i goes to place i and those past the capacity
    nowhere. topk_ids, "compact" only: [capacity, topk] int32, numbers of this rank's experts, -1: not here,
    nothing came. topk_weights: "compact": [capacity, topk] float32, 0 where the id is -1; else [places], 0
    where nothing came. topk 0, "compact" only: the rows have neither ids nor weights. recv_counts: [R] int32,
    is set to what came, room or not.
    """
    epoch = int(x.epochs[1]) + 1
    groups, is_silent = _come(x, epoch, None)
    wire = torch.cat(groups)
    recv_counts.copy_(torch.tensor([len(group) for group in groups]))
    ids, weights = _ids_of(x, groups, ids_offset, topk, first_expert, num_local_experts, weights_offset)
    if layout == "compact":
        n = min(wire.size(0), capacity)
        rows, places = torch.arange(n), torch.arange(n)
        if topk:
            topk_ids.fill_(-1)[:n] = ids[:n]
            topk_weights.zero_()[:n] = torch.where(ids >= 0, weights, 0)[:n]
        if wire.size(0) > capacity:
            _report(x, Fault.CAPACITY, x.rank, epoch)
    else:
        of_rows = positions[: wire.size(0)]
        rows, k = (of_rows >= 0).nonzero(as_tuple=True)
        places = of_rows[rows, k].long()
        topk_weights.view(-1).zero_()[places] = weights[rows, k]
    for out, offset in zip(outs, offsets, strict=True):
        out.zero_()[places] = wire[rows, offset : offset + out.size(1)]
    _end_receiving(x, epoch, is_silent)


def combine_send(
    x: DeviceExchange, y: Tensor, topk_weights: Tensor | None, positions: Tensor, recv_counts: Tensor
) -> None:
    """Every received row back to where it came from: the sum of its places in y, times their weights.

    Float32, in the order of k, rounded to y's dtype. y: [places, H] bfloat16, float16 or float32, rows may be
    strided; in the wire row zeros follow it. topk_weights: [places] float32 or None. positions: [R *
    max_tokens, topk] int32, rows of y; those that y does not have count as -1, and are reported as CAPACITY
    of this rank. recv_counts: [R] int32.
    """
    epoch = int(x.epochs[0]) + 1
    is_open = _wait_released(x, epoch)
    places = positions[: int(recv_counts.sum())]
    if (places >= y.size(0)).any():
        _report(x, Fault.CAPACITY, x.rank, epoch)
    total = torch.zeros((places.size(0), y.size(1)))
    for of_rows in places.T:
        is_place = (of_rows >= 0) & (of_rows < y.size(0))
        at = of_rows[is_place].long()
        terms = y[at].float()
        total[is_place] += terms if topk_weights is None else terms * topk_weights[at][:, None]
    wire = torch.zeros((places.size(0), x.row_bytes), dtype=torch.uint8)
    wire[:, : y.size(1) * y.element_size()] = total.to(y.dtype).view(torch.uint8)
    for rank, (first, count) in enumerate(_ranges(recv_counts)):
        if is_open[rank]:
            _rows(x, rank, epoch, x.rank, count).copy_(wire[first : first + count])
    _end_sending(x, epoch, recv_counts, is_open, False)


def combine_receive(x: DeviceExchange, out: Tensor, slots: Tensor, send_counts: Tensor) -> None:
    """out[t] = the sum of what token t comes back as, in the order of the ranks; float32, rounded once.

    out: [T, H] of the dtype of what was sent, contiguous. slots: [T, topk] int32 and send_counts: [R] int32,
    of the dispatch; a rank that sends back another number of rows is left out: DISAGREEMENT.
    """
    epoch = int(x.epochs[1]) + 1
    groups, is_silent = _come(x, epoch, send_counts)
    total = torch.zeros(out.shape)
    for rows, (first, count) in zip(groups, _ranges(send_counts), strict=True):
        if rows.size(0) == count:
            slot = torch.where((slots >= first) & (slots < first + count), slots, -1).amax(1)
            values = rows[:, : out.size(1) * out.element_size()].contiguous().view(out.dtype)
            total[slot >= 0] += values[slot[slot >= 0].long() - first].float()
    out.copy_(total)
    _end_receiving(x, epoch, is_silent)


# --- waiting and telling ----------------------------------------------------------------------------------


def _wait_released(x: DeviceExchange, epoch: int) -> list[bool]:
    """Whether each rank has given back the memory of the epoch before the last."""
    memory = _memory(x)
    is_open = []
    for peer in range(x.num_ranks):
        flag = _at(x, x.rank, memory.released_at(peer), (1,), torch.int64)
        is_open.append(_wait(flag, epoch - 2, x.deadline_ns))
        if not is_open[-1]:
            _report(x, Fault.NOT_RELEASED, peer, epoch)
    return is_open


def _end_sending(x: DeviceExchange, epoch: int, counts: Tensor, is_open: list[bool], is_abort: bool) -> None:
    """Tell every rank that its rows are there, or that this one has failed; but not who released nothing."""
    memory = _memory(x)
    is_abort = is_abort or not all(is_open)
    for peer, count in enumerate(counts.tolist()):
        if is_open[peer]:
            header = _at(x, peer, memory.header_at(epoch, x.rank), (HEADER_WORDS,), torch.int32)
            words = torch.tensor([count, x.row_bytes, x.kind, is_abort], dtype=torch.int64)
            header.copy_(words.to(torch.int32))  # of kind all 32 bits
            _at(x, peer, memory.arrived_at(x.rank), (1,), torch.int64).fill_(epoch)
    x.epochs[0] = epoch


def _come(x: DeviceExchange, epoch: int, counts: Tensor | None) -> tuple[list[Tensor], list[bool]]:
    """-> what came from each rank, [n, row_bytes] uint8, if as in counts, and whether it said nothing."""
    memory = _memory(x)
    groups, is_silent = [], []
    for source in range(x.num_ranks):
        flag = _at(x, x.rank, memory.arrived_at(source), (1,), torch.int64)
        is_silent.append(not _wait(flag, epoch, x.deadline_ns))
        header = _at(x, x.rank, memory.header_at(epoch, source), (HEADER_WORDS,), torch.int32)
        count, row_bytes, kind, is_abort = header.tolist()
        kind &= 0xFFFFFFFF
        fault = None
        if is_silent[-1]:
            fault = Fault.NOT_ARRIVED
        elif is_abort:
            fault = Fault.ABORTED
        elif (row_bytes, kind) != (x.row_bytes, x.kind) or (
            counts is not None and count != int(counts[source])
        ):
            fault = Fault.DISAGREEMENT
        if fault:
            _report(x, fault, source, epoch)
        groups.append(_rows(x, x.rank, epoch, source, 0 if fault else count))
    return groups, is_silent


def _end_receiving(x: DeviceExchange, epoch: int, is_silent: list[bool]) -> None:
    memory = _memory(x)
    for source in range(x.num_ranks):
        if not is_silent[source]:
            _at(x, source, memory.released_at(x.rank), (1,), torch.int64).fill_(epoch)
    x.epochs[1] = epoch


def _wait(flag: Tensor, value: int, nanoseconds: int) -> bool:
    """At least, not equal: a rank may be an epoch ahead."""
    end = time.monotonic_ns() + nanoseconds
    while flag.item() < value:
        if time.monotonic_ns() >= end:
            return False
        time.sleep(1e-4)
    return True


def _report(x: DeviceExchange, fault: Fault, peer: int, epoch: int) -> None:
    x.status.fill_(status_word(fault, peer, epoch))


# --- memory -----------------------------------------------------------------------------------------------


def _memory(x: DeviceExchange) -> Memory:
    return Memory(x.num_ranks, x.max_tokens, x.max_row_bytes)


def _rows(x: DeviceExchange, rank: int, epoch: int, source: int, count: int) -> Tensor:
    return _at(x, rank, _memory(x).rows_at(epoch, source), (count, x.row_bytes), torch.uint8)


def _at(x: DeviceExchange, rank: int, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """What is at this offset in the memory of a rank: a view."""
    count = torch.Size(shape).numel()
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    memory = (ctypes.c_uint8 * (count * dtype.itemsize)).from_address(int(x.bases[rank]) + offset)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def _ids_of(x, groups, ids_offset, topk, first_expert, num_local_experts, weights_offset=0):
    """-> [N, topk] numbers of this rank's experts, -1: not here; [N, topk] weights."""
    wire = torch.cat(groups)
    ids, weights = (
        wire[:, offset : offset + 4 * topk].contiguous().view(dtype).view(-1, topk)
        for offset, dtype in ((ids_offset, torch.int32), (weights_offset, torch.float32))
    ) if topk else (wire.new_empty((wire.size(0), 0), dtype=torch.int32),) * 2  # fmt: skip
    ids = ids - first_expert
    return torch.where((ids >= 0) & (ids < num_local_experts), ids, -1), weights


def _ranges(counts: Tensor) -> list[tuple[int, int]]:
    """(first, count) of each rank's rows."""
    counts = counts.tolist()
    return [(sum(counts[:rank]), count) for rank, count in enumerate(counts)]
