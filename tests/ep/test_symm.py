"""Symmetric memory of torch, as far as it goes without a GPU: what is asked for, and what is made of it.

That processes exchange rows over it is in test_processes.py, with files in its place.
"""

from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symmetric_memory
from moela.ep.transports.symm import SymmTransport, symmetric

SETUP = SimpleNamespace(
    rank=1, num_ranks=2, device=torch.device("cpu"), group="the group", store=dist.HashStore(), deadline=5.0
)
ALLOCATED = "symm/allocated/"  # where rank 0 says how it went


@pytest.fixture(autouse=True)
def block(monkeypatch):
    """What torch allocates from, and gives pieces of."""
    SETUP.store.set(f"{ALLOCATED}0", "null")
    block = torch.full((1024,), 7, dtype=torch.uint8)
    monkeypatch.setattr(symmetric_memory, "empty", lambda n, dtype, device: block[256 : 256 + n])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    return block


def met(monkeypatch, block, **others) -> mock.Mock:
    handle = SimpleNamespace(**{"offset": 256, "buffer_ptrs": [4096, block.data_ptr()]} | others)
    rendezvous = mock.Mock(return_value=handle)
    monkeypatch.setattr(symmetric_memory, "rendezvous", rendezvous)
    return rendezvous


def test_a_piece_of_a_block_is_zeroed_and_found_at_every_rank(block, monkeypatch):
    rendezvous = met(monkeypatch, block)
    (memory, _), pointers = symmetric(128, SETUP)
    assert pointers == [4096 + 256, memory.data_ptr()]
    assert rendezvous.call_args.args[1] == "the group"
    assert not block[256:384].any()
    assert block[384:].eq(7).all()


def test_a_gpu_that_cannot_reach_another_is_an_error(block, monkeypatch):
    met(monkeypatch, block, buffer_ptrs=[0, block.data_ptr()])
    with pytest.raises(RuntimeError, match="not every GPU reaches the memory of all others"):
        symmetric(128, SETUP)


def test_memory_that_is_elsewhere_than_its_tensor_is_an_error(block, monkeypatch):
    met(monkeypatch, block, offset=0)
    with pytest.raises(RuntimeError, match="not where the tensor is"):
        symmetric(128, SETUP)


def test_a_rank_without_memory_is_named_and_not_waited_for(block):
    SETUP.store.set(f"{ALLOCATED}0", '"all of it is used"')
    with pytest.raises(RuntimeError, match="rank 0 has no memory: all of it is used"):
        symmetric(128, SETUP)


def test_memory_that_this_rank_does_not_get_is_told(monkeypatch):
    monkeypatch.setattr(symmetric_memory, "empty", mock.Mock(side_effect=RuntimeError("out of memory")))
    with pytest.raises(RuntimeError, match="rank 1 has no memory: out of memory"):
        symmetric(128, SETUP)
    assert SETUP.store.get(f"{ALLOCATED}1") == b'"out of memory"'


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert SymmTransport.why_not() == "torch sees no GPU"
