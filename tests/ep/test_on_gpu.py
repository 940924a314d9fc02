"""Ranks that are threads, on one GPU: the kernels themselves, and CUDA graphs of them."""

import os
import threading
import time

import layer
import moela
import pytest
import torch
from moela import backends
from moela.ep import EpBuffer, EpTimeout, device_kernels, hopper, run_local
from moela.ep.transports import local_device

if not torch.cuda.is_available():
    if "cuda" in os.environ.get("MOELA_TEST_REQUIRE", "").split(","):
        pytest.fail("MOELA_TEST_REQUIRE asks for a GPU, but torch sees none", pytrace=False)
    pytest.skip("torch sees no GPU", allow_module_level=True)

DEVICE = torch.device("cuda", 0)
LAYOUTS = ("compact", "expert", "masked")
FORMS = [(moela.ep_dispatch, n) for n in LAYOUTS] + [(moela.ep_dispatch_dynamic, n) for n in LAYOUTS[:2]]


@pytest.fixture(params=["cuda", "triton"], autouse=True)
def _kernels(request, monkeypatch):
    why = device_kernels.why_not_on(request.param, DEVICE, 0)
    if why:
        is_required = request.param in os.environ.get("MOELA_TEST_REQUIRE", "").split(",")
        (pytest.fail if is_required else pytest.skip)(f"{request.param}: {why}")
    five = hopper.KERNELS if request.param == "cuda" else device_kernels._in_triton()
    monkeypatch.setattr(local_device, "kernels_for", lambda *_: five)


def inputs(rank: int, T: int = layer.MAX_TOKENS) -> list[torch.Tensor]:
    """On the GPU, where what requires a gradient is a leaf."""
    tensors = layer.inputs(rank, T)
    return [t.detach().to(DEVICE).requires_grad_(t.requires_grad) for t in tensors]


@pytest.mark.parametrize(("dispatch", "layout"), FORMS)
@pytest.mark.parametrize("R", [1, 2, 4])
def test_a_spread_layer_and_its_gradients_are_those_of_one_process(R, dispatch, layout):
    def on_rank(group):
        with EpBuffer(group, **layer.SETTINGS) as buffer:
            assert (buffer.transport.name, buffer.device) == ("local", DEVICE)
            x, ids, weights, grad = inputs(buffer.rank, T=(6, 0, 5, 3)[buffer.rank])
            for _ in range(3):
                out = layer.spread(x, ids, weights, buffer.name, layout, dispatch)
            wanted = layer.dense(x, ids, weights)
            assert torch.equal(out, wanted)
            gradients = [torch.autograd.grad(o, [x, weights], grad) for o in (out, wanted)]
            for mine, theirs in zip(*gradients, strict=True):
                assert torch.equal(mine, theirs)

    run_local(R, on_rank, device=DEVICE)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("hidden", [7168, 37])
def test_the_bits_are_those_of_the_host(hidden, layout):
    settings = {"num_experts": 16, "hidden": hidden, "topk": 4, "max_tokens": 64}
    T = (64, 17)

    def on_rank(group):
        g = torch.Generator().manual_seed(group.index)
        x = torch.randn(T[group.index], hidden, generator=g).bfloat16()
        ids = torch.randint(-1, 16, (len(x), 4), generator=g)
        weights = torch.rand(ids.shape, generator=g)
        with EpBuffer(group, **settings) as buffer:
            x, ids, weights = (t.to(buffer.device) for t in (x, ids, weights))
            extras = [ids[:, :3].float()]
            got = moela.ep_dispatch(x, ids, weights, group=buffer.name, extras=extras, layout=layout)
            w = None if layout == "compact" else got.topk_weights
            out = moela.ep_combine(got.x, got.handle, group=buffer.name, topk_weights=w)
            experts = got.expert_offsets if layout == "expert" else got.expert_counts
            tensors = (got.x, got.topk_ids, got.topk_weights, *got.extras, experts, *got.handle, out)
            return [None if t is None else t.cpu() for t in tensors]

    for mine, theirs in zip(run_local(2, on_rank, device=DEVICE), run_local(2, on_rank), strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("R", [1, 2])
def test_a_graph_is_replayed_with_new_tokens(R, layout):
    # Capturing waits for the device, where kernels of the other rank must not wait for this one.
    together = threading.Barrier(R)

    def on_rank(group):
        with EpBuffer(group, **layer.SETTINGS) as buffer, torch.no_grad():
            args = inputs(buffer.rank)[:3]
            out = moela.ep_dispatch(*args, group=buffer.name, layout=layout)
            combined = torch.empty_like(args[0])

            def step():
                moela.ep_dispatch_out(*args, group=buffer.name, out=out, layout=layout)
                y, w = layer.local(out, layout, buffer.name)
                moela.ep_combine_out(y, out.handle, group=buffer.name, out=combined, topk_weights=w)

            step()
            graph = torch.cuda.CUDAGraph()
            torch.cuda.current_stream().synchronize()
            together.wait()
            mode = {"capture_error_mode": "thread_local"}
            with torch.cuda.graph(graph, stream=torch.cuda.current_stream(), **mode):
                step()
            together.wait()
            for i in range(5):
                for mine, new in zip(args, inputs(buffer.rank + 10 * i)[:3], strict=True):
                    mine.copy_(new)
                graph.replay()
                assert torch.equal(combined, layer.dense(*args))

    run_local(R, on_rank, device=DEVICE)


def test_the_ops_are_what_torch_expects_of_ops():
    def on_rank(group):
        with EpBuffer(group, **layer.SETTINGS, row_bytes=256) as buffer:
            x, ids, weights, _ = inputs(0)
            utils = ("test_schema", "test_autograd_registration", "test_faketensor")
            args = (x, ids, weights, [x.detach()], "expert", None, buffer.name)
            torch.library.opcheck(torch.ops.moela.ep_dispatch.default, args, test_utils=utils)
            got = moela.ep_dispatch(x, ids, weights, group=buffer.name, layout="expert")
            args = (got.x.detach(), got.topk_weights.detach(), *got.handle, buffer.name)
            torch.library.opcheck(torch.ops.moela.ep_combine.default, args, test_utils=utils)

    run_local(1, on_rank, device=DEVICE)


def test_a_capacity_exceeded_is_an_error_and_the_context_lives():
    def on_rank(group):
        with EpBuffer(group, **layer.SETTINGS) as buffer, torch.no_grad():
            args = inputs(buffer.rank)[:3]
            moela.ep_dispatch(*args, group=buffer.name, capacity=1)
            with pytest.raises(ValueError, match="expected a capacity for what came"):
                buffer.check()

    run_local(2, on_rank, device=DEVICE)
    assert torch.ones(3, device=DEVICE).sum() == 3


def test_a_rank_that_is_late_is_named_after_the_deadline():
    def on_rank(group):
        with EpBuffer(group, **layer.SETTINGS | {"deadline": 1.0}) as buffer, torch.no_grad():
            if buffer.rank == 1:
                time.sleep(3)
                return
            moela.ep_dispatch(*inputs(0)[:3], group=buffer.name)
            with pytest.raises(EpTimeout) as error:
                buffer.check()
            assert (error.value.ranks, error.value.epoch) == ([1], 1)

    run_local(2, on_rank, device=DEVICE)


def test_ranks_on_one_stream_are_refused():
    def on_rank(group):
        with torch.cuda.stream(torch.cuda.default_stream(DEVICE)):  # noqa: SIM117
            with pytest.raises(ValueError, match="expected a stream of its own for every rank"):
                EpBuffer(group, **layer.SETTINGS)

    run_local(2, on_rank, device=DEVICE)


def test_a_gpu_has_kernels():
    assert device_kernels.why_not() is None or backends.forced()
