"""Ranks that are processes: what threads cannot show. The last test ends one of them."""

import on_ranks
import pytest
import torch
from moela.backends import interpreted
from moela.ep.rendezvous import Member
from moela.ep.transports import TRANSPORTS
from pool import Pool

HERE = [Member.of_this_process()]
CONNECTING = [name for name, t in TRANSPORTS.items() if t.why_not() is None and not t.unfit(HERE, False)]


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    pool = Pool(2, tmp_path_factory.mktemp("store") / "store")
    yield pool
    pool.close()


@pytest.mark.parametrize("transport", CONNECTING)
def test_processes_compute_the_layer_of_one(pool, transport):
    assert pool.run(on_ranks.layers, transport) == [transport] * 2


def test_auto_is_the_same_transport_on_all(pool):
    assert pool.run(on_ranks.layers, "auto") == [CONNECTING[0]] * 2


@pytest.mark.parametrize(
    "kind",
    [
        "definition",
        pytest.param("triton", marks=pytest.mark.skipif(not interpreted(), reason="no interpreter here")),
    ],
)
def test_processes_exchange_by_kernels_in_memory_that_all_see(pool, tmp_path, kind):
    assert pool.run(on_ranks.layers_by_kernels, str(tmp_path), kind) == ["symm"] * 2


def test_groups_may_be_parts_of_a_mesh(pool):
    assert pool.run(on_ranks.in_parts_of_a_mesh) == [[2, 1]] * 2


def test_a_block_is_trained_as_in_one_process(pool):
    for spread, whole in pool.run(on_ranks.trained_block):
        torch.testing.assert_close(spread, whole, rtol=1e-4, atol=1e-4)


def test_the_example_trains(pool):
    first, second = pool.run(on_ranks.example)
    assert first == second
    assert first[-1] < first[0]


def test_processes_with_different_settings_are_told(pool):
    message = "EpBuffer: hidden: expected the same on all ranks, got 4 on rank 0 and 5 on rank 1"
    assert pool.run(on_ranks.other_settings) == [message] * 2


@pytest.mark.parametrize("transport", CONNECTING)
def test_a_process_that_stops_is_late(pool, transport):
    [(kind, ranks, epoch, seconds), _] = pool.run(on_ranks.late, transport)
    assert (kind, ranks, epoch) == ("EpTimeout", [1], 3)
    assert seconds > 1.9


def test_after_that_a_new_buffer_works(pool):
    assert pool.run(on_ranks.in_parts_of_a_mesh) == [[2, 1]] * 2


def test_a_process_that_is_killed_is_lost_at_once(pool):
    [(kind, ranks, epoch, seconds), _] = pool.run(on_ranks.lost, "collective")
    assert (kind, ranks, epoch) == ("EpPeerLost", [1], 3)
    assert seconds < 15  # the deadline is 20
