"""The ops behind which the Hopper kernels are: with the definition in their place, on the CPU."""

import re

import device_definition
import layer
import pytest
import torch
from moela.ep import EpBuffer, device_kernels, hopper, run_local
from moela.ep.device import DeviceExchange, Kernels
from moela.ep.transports import local_device


@pytest.fixture(scope="module", autouse=True)
def _defined():
    library = torch.library.Library("moela_ep", "IMPL")
    for name in Kernels._fields:
        library.impl(f"device_{name}", defined(name), "CPU")
    yield
    library._destroy()


def defined(name: str):
    function, has_layout = getattr(device_definition, name), name in ("place", "receive")

    def call(bases, rank, *args):
        given, args = args[:8], list(args[8:])
        if has_layout:
            args[0] = hopper.LAYOUTS[args[0]]
        function(DeviceExchange(bases, rank, bases.numel(), *given), *args)

    return call


@pytest.mark.parametrize("layout", ["compact", "expert", "masked"])
def test_what_the_kernels_are_given_is_what_the_ops_take(kernels, monkeypatch, layout):
    monkeypatch.setattr(local_device, "kernels_for", lambda *_: hopper.KERNELS)

    def on_rank(group):
        with EpBuffer(group, **layer.SETTINGS) as buffer:
            x, ids, weights, grad = layer.inputs(buffer.rank)
            out = layer.spread(x, ids, weights, buffer.name, layout)
            wanted = layer.dense(x, ids, weights)
            assert torch.equal(out, wanted)
            gradients = [torch.autograd.grad(o, [x, weights], grad) for o in (out, wanted)]
            for mine, theirs in zip(*gradients, strict=True):
                assert torch.equal(mine, theirs)

    run_local(2, on_rank)


def test_a_device_without_kernels_says_why(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(device_kernels.backends, "_capability", lambda _: (7, 5))
    with pytest.raises(ValueError, match=r"no kernels for cuda:0: .*built for Hopper"):
        device_kernels.kernels_for(torch.device("cuda:0"), 64)


def test_rows_that_do_not_fit_twice_into_shared_memory_are_for_others(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(hopper, "_is_built", lambda: True)
    monkeypatch.setattr(device_kernels, "_in_triton", lambda: "triton")
    monkeypatch.setattr(device_kernels.backends, "why_not", lambda *_: None)
    device = torch.device("cuda:0")
    assert device_kernels.kernels_for(device, hopper.MAX_ROW_BYTES) is hopper.KERNELS
    assert device_kernels.kernels_for(device, hopper.MAX_ROW_BYTES + 16) == "triton"


def ints(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int32)


def rows(n: int, w: int = 40) -> list[torch.Tensor]:
    return [torch.zeros(n, w, dtype=torch.uint8)]


# Of two ranks, with rows of 64 bytes, four from each at most; top-2.
REFUSED = {
    "offsets: expected at most 24, got 32": ("send", rows(3), [32], ints(3, 2), ints(2), False),
    "slots: expected at most 4, got 5": ("send", rows(5), [0], ints(5, 2), ints(2), False),
    "counts: expected shape [2], got [3]": ("send", rows(3), [0], ints(3, 2), ints(3), False),
    "columns: expected at most 8, got 9": ("send", rows(3) * 9, [0] * 9, ints(3, 2), ints(2), False),
    "positions: expected shape [8, 2], got [7, 2]": ("place", 1, 0, 2, 0, 3, 8, ints(7, 2), ints(4)),
    "experts: expected shape [4], got [3]": ("place", 1, 0, 2, 0, 3, 8, ints(8, 2), ints(3)),
    "ids_offset: expected at most 56, got 64": ("place", 2, 64, 2, 0, 3, 8, ints(8, 2), ints(3)),
    "columns: expected rows=5 (that of the others), got rows=4": (
        "receive", 0, rows(4), [0], 48, 0, 2, 0, 3, None, None, ints(5, 2), torch.zeros(5, 2), ints(2), 5,
    ),
    "y: expected at most 64, got 72": ("combine_send", torch.zeros(5, 18), None, ints(8, 1), ints(2)),
    "y: expected bfloat16, float16 or float32, got int32": (
        "combine_send", ints(5, 16), None, ints(8, 1), ints(2),
    ),
    "slots: expected shape [5, 2], got [4, 2]": ("combine_receive", torch.zeros(5, 16), ints(4, 2), ints(2)),
}  # fmt: skip


@pytest.mark.skipif(not hopper._is_built(), reason="libmoela_cuda.so was not built")
@pytest.mark.parametrize("message", REFUSED)
def test_what_would_reach_beyond_the_memory_of_a_tensor_is_refused(message):
    """The library's own checks come before anything that needs a GPU."""
    name, *args = REFUSED[message]
    given = DeviceExchange(
        bases=torch.zeros(2, dtype=torch.int64), rank=0, num_ranks=2, max_tokens=4, max_row_bytes=64,
        epochs=torch.zeros(2, dtype=torch.int64), kind=7, row_bytes=64, deadline_ns=10, done=ints(2),
        status=torch.zeros(1, dtype=torch.int64),
    )  # fmt: skip
    op = getattr(torch.ops.moela_ep, f"device_{name}").default
    with pytest.raises(ValueError, match=re.escape(f"ep: {message}")):
        op._op_dk(torch._C.DispatchKey.CUDA, *hopper._given(given), *args)
