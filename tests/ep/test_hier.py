"""Nodes of several ranks: threads as ranks of a grid, and four processes of one host as two nodes of two.

What every transport promises is tested in test_layouts and test_failures; here is what only this one has.
"""

import threading

import layer
import moela
import on_ranks
import pytest
import torch
from moela.ep import EpBuffer, EpTimeout, run_local
from moela.ep.rendezvous import Member
from moela.ep.transports import TRANSPORTS, reasons_against
from moela.ep.transports.hier import HierTransport
from pool import Pool

pytestmark = pytest.mark.skipif(bool(why := HierTransport.why_not()), reason=f"hier: {why}")


def settings(ranks_per_node: int, **others):
    return layer.SETTINGS | {"transport": "hier", "ranks_per_node": ranks_per_node} | others


def members(*nodes: str) -> list[Member]:
    return [Member("host", pid, 0, node) for pid, node in enumerate(nodes)]


@pytest.mark.parametrize(("R", "ranks_per_node"), [(4, 2), (6, 2), (6, 3)])
def test_a_layer_over_a_grid_and_its_gradients_are_those_of_one_process(R, ranks_per_node):
    def on_rank(group):
        with EpBuffer(group, **settings(ranks_per_node)) as buffer:
            x, ids, weights, grad = layer.inputs(buffer.rank, T=(6, 0, 5, 3, 1, 6)[buffer.rank])
            for layout in ("compact", "expert", "masked"):
                out = layer.spread(x, ids, weights, buffer.name, layout)
                wanted = layer.dense(x, ids, weights)
                assert torch.equal(out, wanted)
                gradients = [torch.autograd.grad(o, [x, weights], grad) for o in (out, wanted)]
                for mine, theirs in zip(*gradients, strict=True):
                    assert torch.equal(mine, theirs)

    run_local(R, on_rank)


def test_two_exchanges_on_their_way_are_those_one_after_the_other():
    def on_rank(group):
        with EpBuffer(group, **settings(2)) as buffer, torch.no_grad():
            for i in range(20):
                batches = [layer.inputs(buffer.rank + 10 * (2 * i + j))[:3] for j in range(2)]
                pending = [moela.ep_dispatch_send(*b, group=buffer.name) for b in batches]
                got = [moela.ep_dispatch_recv(p, group=buffer.name) for p in pending]
                ys = [layer.local(g, "compact", buffer.name)[0] for g in got]
                pending = [
                    moela.ep_combine_send(y, g.handle, group=buffer.name)
                    for y, g in zip(ys, got, strict=True)
                ]
                for p, batch in zip(pending, batches, strict=True):
                    assert torch.equal(moela.ep_combine_recv(p, group=buffer.name), layer.dense(*batch))

    run_local(4, on_rank)


def test_a_token_travels_once_to_a_node():
    """All tokens of rank 0 want every expert: of the other node's both ranks, over one rail."""

    def on_rank(group):
        of = {"num_experts": 4, "topk": 4, "hidden": 4, "max_tokens": 6}
        with EpBuffer(group, **settings(2, **of)) as buffer:
            rail, between = buffer.transport._rail.transport, []
            send = rail.send
            rail.send = lambda *args: (between.append(args[-1].tolist()), send(*args))
            T = 6 if buffer.rank == 0 else 0
            ids, x = torch.arange(4).repeat(T, 1), torch.ones(T, 4)
            got = moela.ep_dispatch(x, ids, torch.ones(T, 4), group=buffer.name)
            assert got.handle.recv_counts.tolist() == [6, 0, 0, 0]
            return between

    assert run_local(4, on_rank) == [[[6, 6]], [[0, 0]], [[0, 0]], [[0, 0]]]


def test_an_exchange_given_up_behind_another_is_an_error_on_all_in_its_turn():
    def on_rank(group):
        with EpBuffer(group, **settings(2)) as buffer, torch.no_grad():
            args = layer.inputs(buffer.rank)[:3]
            pending = moela.ep_dispatch_send(*args, group=buffer.name)
            if buffer.rank == 1:
                with pytest.raises(ValueError, match="ep_dispatch_send: x: expected hidden=4, got hidden=3"):
                    moela.ep_dispatch_send(args[0][:, :3], *args[1:], group=buffer.name)
            else:
                second = moela.ep_dispatch_send(*args, group=buffer.name)
            got = moela.ep_dispatch_recv(pending, group=buffer.name)
            if buffer.rank != 1:
                with pytest.raises(ValueError, match="ep: rank 1 gave up in epoch 2: ep_dispatch_send: x"):
                    moela.ep_dispatch_recv(second, group=buffer.name)
            y, _ = layer.local(got, "compact", buffer.name)
            assert torch.equal(moela.ep_combine(y, got.handle, group=buffer.name), layer.dense(*args))

    run_local(4, on_rank)


def test_a_rank_that_sends_and_does_not_receive_is_named_by_all():
    """Rank 0 misses it in the node, rank 3 on the rail; rank 2 does not meet it."""
    have_given_up = threading.Barrier(4)

    def on_rank(group):
        with EpBuffer(group, **settings(2, deadline=1.0)) as buffer, torch.no_grad():
            args = layer.inputs(buffer.rank)[:3]
            pending = moela.ep_dispatch_send(*args, group=buffer.name)
            if buffer.rank != 1:
                with pytest.raises(EpTimeout) as error:
                    moela.ep_dispatch_recv(pending, group=buffer.name)
                assert (error.value.ranks, error.value.epoch) == ([1], 1)
            have_given_up.wait(20)

    run_local(4, on_rank)


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ("aaaa", "the ranks are on one node"),
        ("abcd", "expected as many ranks on each node, two or more, got 1, 1, 1, 1"),
        ("aabbb", "expected as many ranks on each node, two or more, got 2, 3"),
        ("abab", None),
    ],
)
def test_grids_that_are_none_are_told(nodes, reason):
    assert HierTransport.unfit(members(*nodes), is_local=False) == reason


def test_a_node_over_two_hosts_is_none():
    scattered = [m._replace(host=str(i % 2)) for i, m in enumerate(members(*"aabb"))]
    reason = HierTransport.unfit(scattered, is_local=False)
    assert reason == "in node 0: rank 1 is not on the host of rank 0, or in another container"


def test_it_is_chosen_for_hosts_of_several_ranks():
    faults = [dict.fromkeys(TRANSPORTS)] * 4
    for hosts, *chosen in (
        ("aabb", "hier", "hier"),
        ("abab", "hier", "hier"),
        ("aaaa", "shm", "symm"),
        ("abbb", "collective", "collective"),
    ):
        for device, name in zip(("cpu", "cuda:0"), chosen, strict=True):
            ranks = [Member(host, pid, 0, host, device) for pid, host in enumerate(hosts)]
            reasons = reasons_against(faults, ranks, is_local=False)
            assert next(name for name, why in reasons.items() if why is None) == name


def test_nodes_that_do_not_divide_the_ranks_are_an_error():
    def on_rank(group):
        message = "EpBuffer: ranks_per_node: expected a divisor of the 4 ranks, got 3"
        with pytest.raises(ValueError, match=message):
            EpBuffer(group, **settings(3))

    run_local(4, on_rank)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    pool = Pool(4, tmp_path_factory.mktemp("store") / "store")
    yield pool
    pool.close()


def test_four_processes_as_two_nodes_compute_the_layer_of_one(pool):
    assert pool.run(on_ranks.in_nodes_of_two) == ["hier"] * 4


def test_four_processes_with_gpus_as_two_nodes_compute_the_layer_of_one(pool, tmp_path):
    assert pool.run(on_ranks.in_nodes_of_gpus, str(tmp_path)) == ["hier"] * 4


def test_rails_and_nodes_of_gpus_have_groups_of_their_own(pool):
    assert pool.run(on_ranks.groups_in_a_grid) == [
        [[r % 2, r % 2 + 2], [r // 2 * 2, r // 2 * 2 + 1]] for r in range(4)
    ]


def test_a_process_that_is_killed_is_named_on_both_nodes(pool):
    told = pool.run(on_ranks.lost_in_nodes_of_two)
    assert told.pop(1) is None
    for kind, ranks, epoch, seconds in told:
        assert (kind, ranks, epoch) == ("EpPeerLost", [1], 3)
        assert seconds < 15  # the deadline is 20
