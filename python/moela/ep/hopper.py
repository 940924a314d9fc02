"""The kernels of an exchange for Hopper, csrc/cuda/ep_dispatch and ep_combine, behind ops of their own."""

import torch

from moela import backends
from moela.ep.device import DeviceExchange, Kernels

LAYOUTS = ("compact", "expert", "masked")  # EpLayout of csrc/cuda/ep_dispatch/ep_dispatch.h
MAX_ROW_BYTES = 112 * 1024  # two rows have to fit into shared memory

_EXCHANGE = (
    "Tensor bases, int rank, int max_tokens, int max_row_bytes, Tensor(a!) epochs, int kind, int row_bytes, "
    "int deadline_ns, Tensor(b!) done, Tensor(c!) status"
)
_PLACES = "int topk, int first_expert, int num_local_experts"
_lib = torch.library.Library("moela_ep", "FRAGMENT")
_lib.define(
    f"device_send({_EXCHANGE}, Tensor[] columns, int[] offsets, Tensor slots, Tensor counts, bool is_abort)"
    " -> ()"
)
_lib.define(
    f"device_place({_EXCHANGE}, int layout, int ids_offset, {_PLACES}, int capacity, Tensor(d!) positions, "
    "Tensor(e!) experts) -> ()"
)
_lib.define(
    f"device_receive({_EXCHANGE}, int layout, Tensor(d!)[] outs, int[] offsets, int ids_offset, "
    f"int weights_offset, {_PLACES}, Tensor? positions, Tensor? experts, Tensor(e!)? topk_ids, "
    "Tensor(f!)? topk_weights, Tensor(g!) recv_counts, int capacity) -> ()"
)
_lib.define(
    f"device_combine_send({_EXCHANGE}, Tensor y, Tensor? topk_weights, Tensor positions, Tensor recv_counts)"
    " -> ()"
)
_lib.define(f"device_combine_receive({_EXCHANGE}, Tensor(d!) out, Tensor slots, Tensor send_counts) -> ()")


def why_not(row_bytes: int) -> str | None:
    """Why these kernels cannot be used here, where there is a Hopper GPU."""
    if not _is_built():
        return backends.library("cuda").error or "libmoela_cuda.so is of another version"
    if row_bytes > MAX_ROW_BYTES:
        return f"expected rows of at most {MAX_ROW_BYTES} bytes, got {row_bytes}"
    return None


def _is_built() -> bool:
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return backends.library("cuda").handle is not None and has_kernel("moela_ep::device_send", "CUDA")


def _given(x: DeviceExchange) -> tuple:
    return (x.bases, x.rank, *x[3:])  # num_ranks is the size of bases


def send(x: DeviceExchange, *args) -> None:
    torch.ops.moela_ep.device_send(*_given(x), *args)


def place(x: DeviceExchange, layout: str, *args) -> None:
    torch.ops.moela_ep.device_place(*_given(x), LAYOUTS.index(layout), *args)


def receive(x: DeviceExchange, layout: str, *args) -> None:
    torch.ops.moela_ep.device_receive(*_given(x), LAYOUTS.index(layout), *args)


def combine_send(x: DeviceExchange, *args) -> None:
    torch.ops.moela_ep.device_combine_send(*_given(x), *args)


def combine_receive(x: DeviceExchange, *args) -> None:
    torch.ops.moela_ep.device_combine_receive(*_given(x), *args)


KERNELS = Kernels(send, place, receive, combine_send, combine_receive)
