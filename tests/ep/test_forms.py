"""The forms of dispatch and combine: derivatives, halves, exact sizes, results in tensors of the caller."""

import time

import layer
import moela
import pytest
import torch
from moela.ep import EpBuffer, run_local

LAYOUTS = ("compact", "expert", "masked")
pytestmark = pytest.mark.usefixtures("way")


def with_gradients(function, *args):
    x, ids, weights, grad = args
    out = function(x, ids, weights)
    return out.detach(), *torch.autograd.grad(out, [x, weights], grad)


FORMS = [(moela.ep_dispatch, n) for n in LAYOUTS] + [(moela.ep_dispatch_dynamic, n) for n in LAYOUTS[:2]]


@pytest.mark.parametrize(("dispatch", "layout"), FORMS)
def test_a_spread_layer_and_its_gradients_are_those_of_one_process(dispatch, layout):
    def on_rank(group):
        with EpBuffer(group, **layer.SETTINGS) as buffer:
            args = layer.inputs(buffer.rank, T=(6, 0, 5)[buffer.rank])
            got = with_gradients(lambda *a: layer.spread(*a, buffer.name, layout, dispatch), *args)
            for mine, wanted in zip(got, with_gradients(layer.dense, *args), strict=True):
                assert torch.equal(mine, wanted)

    run_local(3, on_rank)


def test_layers_share_a_buffer():
    def on_rank(group):
        with EpBuffer(group, **layer.SETTINGS) as buffer:
            x, ids, weights, grad = layer.inputs(buffer.rank)
            out = wanted = x
            for layout in LAYOUTS:
                out = layer.spread(out, ids, weights, buffer.name, layout)
                wanted = layer.dense(wanted, ids, weights)
            assert torch.equal(out, wanted)
            gradients = [torch.autograd.grad(o, [x, weights], grad) for o in (out, wanted)]
            for mine, theirs in zip(*gradients, strict=True):
                torch.testing.assert_close(mine, theirs)

    run_local(2, on_rank)


def test_weights_are_trained_where_x_is_fp8():
    def on_rank(group):
        with EpBuffer(group, **layer.SETTINGS) as buffer:
            x, ids, weights, _ = layer.inputs(buffer.rank)
            got = moela.ep_dispatch(x.detach().to(torch.float8_e4m3fn), ids, weights, group=buffer.name)
            [grad] = torch.autograd.grad(got.topk_weights.sum(), [weights])
            assert torch.equal(grad, ((ids >= 0) & (ids < layer.E)).float())

    run_local(2, on_rank)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_that_no_token_came_to_do_not_matter(layout):
    def on_rank(group):
        with EpBuffer(group, **layer.SETTINGS) as buffer:
            x, ids, weights, grad = layer.inputs(buffer.rank)
            got = moela.ep_dispatch(x, ids, weights, group=buffer.name, layout=layout)
            y, w = layer.local(got, layout, buffer.name)
            used = torch.zeros(y.shape[:-1], dtype=torch.bool)
            positions = got.handle.positions.flatten()
            used.view(-1)[positions[positions >= 0]] = True
            y = torch.where(used[..., None], y, float("nan"))
            w = None if w is None else torch.where(used, w, float("nan"))
            out = moela.ep_combine(y, got.handle, group=buffer.name, topk_weights=w)
            wanted = layer.dense(x, ids, weights)
            assert torch.equal(out, wanted)
            gradients = [torch.autograd.grad(o, [x, weights], grad) for o in (out, wanted)]
            for mine, theirs in zip(*gradients, strict=True):
                assert torch.equal(mine, theirs)

    run_local(2, on_rank)


def test_many_exchanges_with_ranks_out_of_step_keep_their_rows(way):
    def on_rank(group):
        with EpBuffer(group, **layer.SETTINGS) as buffer, torch.no_grad():
            x, ids, weights, _ = layer.inputs(buffer.rank)
            for i in range(200 if way == "host" else 40):
                if (i * 7 + buffer.rank) % 50 == 0:
                    time.sleep(0.001)
                got = moela.ep_dispatch(x + i, ids, weights, group=buffer.name)
                out = moela.ep_combine(got.x, got.handle, group=buffer.name)
                ranks = torch.zeros(len(ids), buffer.num_ranks + 1).scatter_(1, owners(ids, buffer), 1)
                assert torch.equal(out, (x + i) * ranks[:, :-1].sum(1, keepdim=True))

    def owners(ids, buffer):
        parts = torch.arange(layer.E).tensor_split(buffer.num_ranks)
        of = torch.cat(
            [torch.full((len(p),), r) for r, p in enumerate(parts)] + [torch.tensor([buffer.num_ranks])]
        )
        return of[torch.where((ids >= 0) & (ids < layer.E), ids, layer.E)]

    run_local(3, on_rank)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_of_another_dispatch_are_refused(layout, way):
    """Each rank has one row too few. The host says so before it would wait for the other."""

    def on_rank(group):
        with EpBuffer(group, **layer.SETTINGS) as buffer, torch.no_grad():
            got = moela.ep_dispatch(*layer.inputs(buffer.rank)[:3], group=buffer.name, layout=layout)
            y = got.x.flatten(0, -2)[: got.handle.positions.max()]
            y = y[None] if layout == "masked" else y
            if way == "kernels":  # by the op, or later
                words = "ep: epoch 2: expected a capacity for what came, and a y with"
                with pytest.raises(ValueError, match=words):
                    checked(buffer, moela.ep_combine, y, got.handle)
                return
            with pytest.raises(ValueError, match="ep_combine: y: expected the rows of the dispatch"):
                moela.ep_combine(y, got.handle, group=buffer.name)
            assert torch.equal(
                layer.spread(*layer.inputs(0)[:3], buffer.name, layout), layer.dense(*layer.inputs(0)[:3])
            )

    run_local(2, on_rank)


def checked(buffer, op, *args) -> None:
    op(*args, group=buffer.name)
    buffer.check()


def test_exact_sizes_are_exact():
    def on_rank(group):
        with EpBuffer(group, **layer.SETTINGS) as buffer:
            args = [t.detach() for t in layer.inputs(buffer.rank)[:3]]
            compact, expert = (
                moela.ep_dispatch_dynamic(*args, group=buffer.name, layout=n) for n in ("compact", "expert")
            )
            assert compact.x.size(0) == compact.handle.recv_counts.sum() == compact.topk_ids.size(0)
            assert expert.x.size(0) == expert.expert_offsets[-1] == expert.topk_weights.size(0)

    run_local(2, on_rank)


def test_two_exchanges_on_their_way_are_those_one_after_the_other():
    def on_rank(group):
        with EpBuffer(group, **layer.SETTINGS) as buffer, torch.no_grad():
            batches = [layer.inputs(buffer.rank + 10 * i)[:3] for i in range(2)]
            dispatched = [moela.ep_dispatch_send(*b, group=buffer.name) for b in batches]
            received = [moela.ep_dispatch_recv(p, group=buffer.name) for p in dispatched]
            combined = []
            for got in received:
                y, _ = layer.local(got, "compact", buffer.name)
                combined.append(moela.ep_combine_send(y, got.handle, group=buffer.name))
                y.fill_(float("nan"))  # it is sent
            for pending, batch in zip(combined, batches, strict=True):
                assert torch.equal(moela.ep_combine_recv(pending, group=buffer.name), layer.dense(*batch))

    run_local(2, on_rank)


def test_halves_are_for_inference():
    def on_rank(group):
        message = "ep_dispatch_send: has no derivative; train with ep_dispatch"
        with (
            EpBuffer(group, **layer.SETTINGS) as buffer,
            pytest.raises(NotImplementedError, match=message),
        ):
            moela.ep_dispatch_send(*layer.inputs(0)[:3], group=buffer.name)

    run_local(1, on_rank)


def test_halves_are_received_once_and_in_order():
    def on_rank(group):
        with EpBuffer(group, **layer.SETTINGS) as buffer, torch.no_grad():
            first, second = (
                moela.ep_dispatch_send(*layer.inputs(0)[:3], group=buffer.name) for _ in range(2)
            )
            with pytest.raises(ValueError, match="at most 2 exchanges sent"):
                moela.ep_dispatch_send(*layer.inputs(0)[:3], group=buffer.name)
            with pytest.raises(ValueError, match="expected the exchange of epoch 1, got that of 2"):
                moela.ep_dispatch_recv(second, group=buffer.name)
            moela.ep_dispatch_recv(first, group=buffer.name)
            with pytest.raises(ValueError, match="expected the exchange of epoch 2, got that of 1"):
                moela.ep_dispatch_recv(first, group=buffer.name)
            moela.ep_dispatch_recv(second, group=buffer.name)

    run_local(1, on_rank)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_out_variants_write_everything(layout):
    def on_rank(group):
        with EpBuffer(group, **layer.SETTINGS, row_bytes=256) as buffer, torch.no_grad():
            other, args = layer.inputs(5)[:3], layer.inputs(buffer.rank)[:3]
            out = moela.ep_dispatch(*other, group=buffer.name, extras=[other[0]], layout=layout)
            moela.ep_dispatch_out(*args, group=buffer.name, out=out, extras=[args[0]], layout=layout)
            wanted = moela.ep_dispatch(*args, group=buffer.name, extras=[args[0]], layout=layout)
            for mine, theirs in zip(flat(out), flat(wanted), strict=True):
                assert torch.equal(mine, theirs)
            y, weights = layer.local(out, layout, buffer.name)
            combined = torch.full_like(args[0], float("nan"))
            moela.ep_combine_out(y, out.handle, group=buffer.name, out=combined, topk_weights=weights)
            assert torch.equal(combined, layer.dense(*args))

    run_local(2, on_rank)


def flat(received) -> list[torch.Tensor]:
    tensors = [
        received.x,
        received.topk_ids,
        received.topk_weights,
        *received.extras,
        received.expert_offsets,
    ]
    return [t for t in (*tensors, received.expert_counts, *received.handle) if t is not None]


def test_a_sum_over_ranks_is_rounded_once_in_the_order_of_ranks():
    def on_rank(group):
        with EpBuffer(group, **layer.SETTINGS | {"num_experts": 3}) as buffer:
            x = torch.ones(1, layer.HIDDEN, dtype=torch.bfloat16)
            got = moela.ep_dispatch(x, torch.tensor([[2, 0, 1]]), torch.ones(1, 3), group=buffer.name)
            part = (256.0, 1.0, 1.0)[buffer.rank]  # 256 + 1 is 256 in bfloat16, 258 is not
            return moela.ep_combine(torch.full_like(got.x, part), got.handle, group=buffer.name)

    for out in run_local(3, on_rank):
        assert torch.equal(out, torch.full_like(out, 258))
