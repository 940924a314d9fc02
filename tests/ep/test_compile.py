"""Exchanges under torch.compile: one graph, each exchange once and in its place, also with recomputation.

With one rank, the thread of the test: others may not compile. Two ranks that compile are in
test_processes.py.
"""

import copy

import layer
import moela
import pytest
import torch
from moela import nn
from moela.ep import EpBuffer, LocalGroup, run_local
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def num_exchanges(buffer: EpBuffer) -> int:
    return buffer.exchange.num_sent


def compiled(function):
    return torch.compile(function, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("dispatch", [moela.ep_dispatch, moela.ep_dispatch_dynamic])
def test_a_spread_layer_compiles_to_one_graph_with_its_gradients(dispatch):
    def on_rank(group):
        with EpBuffer(group, **layer.SETTINGS) as buffer:
            x, ids, weights, grad = layer.inputs(buffer.rank)
            out = compiled(layer.spread)(x, ids, weights, buffer.name, "compact", dispatch)
            got = torch.autograd.grad(out, [x, weights], grad)
            wanted = layer.dense(x, ids, weights)
            assert torch.equal(out, wanted)
            for mine, theirs in zip(got, torch.autograd.grad(wanted, [x, weights], grad), strict=True):
                assert torch.equal(mine, theirs)
            assert num_exchanges(buffer) == 4

    on_rank(LocalGroup(1).rank(0))


def test_what_is_compiled_once_takes_any_number_of_tokens():
    def all_forms(x, ids, weights, extra, out, group):
        came = moela.ep_dispatch(x, ids, weights, group=group, extras=[extra])
        pending = moela.ep_dispatch_send(x, ids, weights, group=group, extras=[extra])
        again = moela.ep_dispatch_recv(pending, group=group)
        exact = moela.ep_dispatch_dynamic(x, ids, weights, group=group, extras=[extra])
        moela.ep_dispatch_out(x, ids, weights, group=group, extras=[extra], out=out)
        rows = [layer.local(r, "compact", group)[0] for r in (came, again, exact, out)]
        pending = moela.ep_combine_send(rows[0] + rows[1] + rows[3], came.handle, group=group)
        sums = moela.ep_combine_recv(pending, group=group)
        return sums + moela.ep_combine(rows[2], exact.handle, group=group)

    def on_rank(group):
        settings = layer.SETTINGS | {"max_tokens": 9, "row_bytes": 128}  # no size is that of another
        with EpBuffer(group, **settings) as buffer, torch.no_grad():
            forms = torch.compile(all_forms, fullgraph=True, backend="aot_eager", dynamic=True)
            for T in (6, 4, 3):
                x, ids, weights, _ = layer.inputs(0, T)
                args = (x, ids, weights, x[:, :3])
                out = moela.ep_dispatch(*args[:3], group=buffer.name, extras=args[3:])
                with torch._dynamo.config.patch(error_on_recompile=T != 6):
                    assert torch.equal(forms(*args, out, buffer.name), 4 * layer.dense(x, ids, weights))

    on_rank(LocalGroup(1).rank(0))


def test_equal_exchanges_stay_two_and_an_unused_one_stays():
    def three(x, ids, weights, group):
        moela.ep_dispatch(x, ids, weights, group=group)  # other ranks wait for it
        once, again = (moela.ep_dispatch(x, ids, weights, group=group) for _ in range(2))
        return once.x + again.x

    def on_rank(group):
        with EpBuffer(group, **layer.SETTINGS) as buffer, torch.no_grad():
            args = layer.inputs(0)[:3]
            out = compiled(three)(*args, buffer.name)
            assert torch.equal(out, 2 * moela.ep_dispatch(*args, group=buffer.name).x)
            assert num_exchanges(buffer) == 4

    on_rank(LocalGroup(1).rank(0))


def test_halves_stay_in_order():
    def overlapped(x, ids, weights, other, group):
        first = moela.ep_dispatch_send(x, ids, weights, group=group)
        second = moela.ep_dispatch_send(other, ids, weights, group=group)
        a, b = (moela.ep_dispatch_recv(p, group=group) for p in (first, second))
        pending = [
            moela.ep_combine_send(layer.local(r, "compact", group)[0], r.handle, group=group) for r in (a, b)
        ]
        return [moela.ep_combine_recv(p, group=group) for p in pending]

    def on_rank(group):
        with EpBuffer(group, **layer.SETTINGS) as buffer, torch.no_grad():
            x, ids, weights, other = layer.inputs(buffer.rank)
            out = compiled(overlapped)(x, ids, weights, other, buffer.name)
            assert torch.equal(out[0], layer.dense(x, ids, weights))
            assert torch.equal(out[1], layer.dense(other, ids, weights))

    on_rank(LocalGroup(1).rank(0))


@pytest.mark.parametrize("wrap", [lambda f: f, compiled], ids=["eager", "compiled"])
def test_recomputation_keeps_what_was_exchanged(wrap):
    def on_rank(group):
        with EpBuffer(group, **layer.SETTINGS) as buffer:
            x, ids, weights, grad = layer.inputs(buffer.rank)

            def saved():
                return create_selective_checkpoint_contexts(moela.ep.must_save_ops())

            @wrap
            def step(x, ids, weights):
                return checkpoint(
                    lambda *a: layer.spread(*a, buffer.name, "compact").sin(),
                    x, ids, weights, use_reentrant=False, context_fn=saved,
                )  # fmt: skip

            got = torch.autograd.grad(step(x, ids, weights), [x, weights], grad)
            wanted = torch.autograd.grad(layer.dense(x, ids, weights).sin(), [x, weights], grad)
            for mine, theirs in zip(got, wanted, strict=True):
                torch.testing.assert_close(mine, theirs)
            assert num_exchanges(buffer) == 4

    on_rank(LocalGroup(1).rank(0))


def test_plain_recomputation_exchanges_again_and_is_right():
    def on_rank(group):
        with EpBuffer(group, **layer.SETTINGS) as buffer:
            x, ids, weights, grad = layer.inputs(buffer.rank)
            out = checkpoint(layer.spread, x, ids, weights, buffer.name, "compact", use_reentrant=False)
            got = torch.autograd.grad(out, [x, weights], grad)
            wanted = torch.autograd.grad(layer.dense(x, ids, weights), [x, weights], grad)
            for mine, theirs in zip(got, wanted, strict=True):
                assert torch.equal(mine, theirs)
            assert num_exchanges(buffer) > 4

    run_local(2, on_rank)


@pytest.mark.parametrize("layout", ["compact", "expert", "masked"])
def test_the_ops_are_what_torch_expects_of_ops(layout):
    def on_rank(group):
        with EpBuffer(group, **layer.SETTINGS, row_bytes=256) as buffer:
            x, ids, weights, _ = layer.inputs(0)
            ops = torch.ops.moela
            utils = ("test_schema", "test_autograd_registration", "test_faketensor")
            args = (x, ids, weights, [x.detach()], layout, None, buffer.name)
            torch.library.opcheck(ops.ep_dispatch.default, args, test_utils=utils)
            received = moela.ep_dispatch(x, ids, weights, group=buffer.name, layout=layout)
            y, w = layer.local(received, layout, buffer.name)
            args = (y.detach(), w, *received.handle, buffer.name)
            torch.library.opcheck(ops.ep_combine.default, args, test_utils=utils)

    on_rank(LocalGroup(1).rank(0))


def test_a_spread_block_compiles_for_inference_and_training():
    torch.manual_seed(0)
    gate, experts = nn.TopkRouter(16, 4, 2), nn.Experts(16, 8, 4)
    x = torch.randn(5, 16)
    wanted = nn.MoE(gate, experts)(x)

    def on_rank(group):
        with EpBuffer(group, num_experts=4, hidden=16, topk=2, max_tokens=5) as buffer:
            mine = experts.part(range(buffer.first_expert, buffer.first_expert + buffer.num_local_experts))
            block = nn.MoE(copy.deepcopy(gate), mine, ep_group=buffer.name)
            with torch.no_grad():
                torch.testing.assert_close(compiled(block)(x), wanted)
            loss = compiled(block)(x).square().sum()
            loss.backward()
            return mine.down_proj.grad

    got = on_rank(LocalGroup(1).rank(0))
    wanted.square().sum().backward()
    torch.testing.assert_close(got, experts.down_proj.grad, rtol=1e-4, atol=1e-5)
