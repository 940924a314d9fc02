"""Launches of the Triton kernels that exchange rows between ranks that aot.py compiles, by variant."""

from typing import Any

import torch
from launches import BF16, F16, F32, Launch
from moela.ep.device import DeviceExchange
from moela.ep.wire import wire_format
from moela.kernels import ep_combine, ep_dispatch

R, T, TOPK, E = 8, 128, 8, 32
I32 = torch.int32


def exchange(row_bytes: int) -> DeviceExchange:
    words = torch.zeros(16, dtype=torch.int64)
    return DeviceExchange(
        bases=words,
        rank=2,
        num_ranks=R,
        max_tokens=T,
        max_row_bytes=row_bytes,
        epochs=words,
        kind=0x9ABCDEF0,
        row_bytes=row_bytes,
        deadline_ns=30 * 10**9,
        done=torch.zeros(2, dtype=I32),
        status=words,
    )


def row(*widths: int) -> tuple[list[torch.Tensor], tuple[int, ...], DeviceExchange]:
    """T of each column, and of ids and weights."""
    form = wire_format((*widths, 4 * TOPK, 4 * TOPK))
    columns = [torch.empty(T, w, dtype=torch.uint8) for w in form.widths]
    return columns, form.offsets, exchange(form.row_bytes)


def send(*widths: int) -> Launch:
    columns, offsets, x = row(*widths)
    slots = torch.empty(T, TOPK, dtype=I32)
    return ep_dispatch.send, (x, columns, offsets, slots, torch.empty(R, dtype=I32), False), {}


def place(layout: str) -> Launch:
    positions, experts = torch.empty(R * T, TOPK, dtype=I32), torch.empty(E + 1, dtype=I32)
    return ep_dispatch.place, (exchange(14400), layout, 14336, TOPK, 64, E, R * T, positions, experts), {}


def receive(layout: str, *widths: int) -> Launch:
    columns, offsets, x = row(*widths)
    is_compact, where = layout == "compact", (*offsets[-2:], TOPK, 64, E)
    tensors: dict[str, Any] = {
        "positions": None if is_compact else torch.empty(R * T, TOPK, dtype=I32),
        "experts": None if is_compact else torch.empty(E + 1, dtype=I32),
        "topk_ids": torch.empty(T, TOPK, dtype=I32) if is_compact else None,
        "topk_weights": torch.empty(T, TOPK),
        "recv_counts": torch.empty(R, dtype=I32),
    }
    args = (x, layout, columns[:-2], offsets[:-2], *where)
    return ep_dispatch.receive, args, tensors | {"capacity": T}


def combine_send(dtype: torch.dtype, has_weights: bool, H: int = 7168) -> Launch:
    y = torch.empty(T, H, dtype=dtype)
    positions, counts = torch.empty(R * T, TOPK if has_weights else 1, dtype=I32), torch.empty(R, dtype=I32)
    x = exchange(-(-H * dtype.itemsize // 16) * 16)
    return ep_combine.combine_send, (x, y, torch.empty(T) if has_weights else None, positions, counts), {}


def combine_receive(dtype: torch.dtype, H: int = 7168) -> Launch:
    out, slots = torch.empty(T, H, dtype=dtype), torch.empty(T, TOPK, dtype=I32)
    x = exchange(-(-H * dtype.itemsize // 16) * 16)
    return ep_combine.combine_receive, (x, out, slots, torch.empty(R, dtype=I32)), {}


def ones(of: Launch) -> Launch:
    """Numbers that are 1 are constants to Triton, in an exchange too."""
    function, (x, *args), kwargs = of
    return function, (x._replace(num_ranks=1, rank=1, max_tokens=1, kind=1), *args), kwargs


VARIANTS = {
    "ep_dispatch-send": lambda: send(14336),
    "ep_dispatch-send-extras": lambda: send(7168, 224, 3),
    "ep_dispatch-send-ones": lambda: ones(send(16)),
    "ep_dispatch-place-expert": lambda: place("expert"),
    "ep_dispatch-place-masked": lambda: place("masked"),
    "ep_dispatch-receive-compact": lambda: receive("compact", 14336),
    "ep_dispatch-receive-expert": lambda: receive("expert", 7168, 224, 3),
    "ep_dispatch-receive-masked": lambda: receive("masked", 14336),
    "ep_dispatch-receive-ones": lambda: ones(receive("masked", 1)),
    "ep_combine-send-bf16": lambda: combine_send(BF16, has_weights=True),
    "ep_combine-send-f16-odd": lambda: combine_send(F16, has_weights=False, H=37),
    "ep_combine-send-f32": lambda: combine_send(F32, has_weights=True),
    "ep_combine-receive-bf16": lambda: combine_receive(BF16),
    "ep_combine-receive-f16": lambda: combine_receive(F16),
    "ep_combine-receive-f32-odd": lambda: combine_receive(F32, H=37),
}
