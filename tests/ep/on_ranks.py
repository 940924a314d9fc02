"""What the processes of a Pool run."""

import contextlib
import os
import runpy
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import device_definition
import interpreter
import layer
import moela
import torch
import torch.distributed as dist
from moela import nn
from moela.ep import EpBuffer, EpError
from moela.ep.device import Kernels
from moela.ep.device_kernels import kernels_for
from moela.ep.transports import hier, symm, symm_rows
from torch.distributed.device_mesh import init_device_mesh


def layers_by_kernels(rank: int, folder: str, kind: str) -> str:
    """The transport for GPUs, with files that both map in the place of their memory."""
    with files_as_symmetric_memory(folder, kind):
        return layers(rank, "symm")


def in_nodes_of_gpus(rank: int, folder: str) -> str:
    """Four processes as two nodes of two: in a node through symmetric memory."""
    with (
        files_as_symmetric_memory(folder, "definition"),
        mock.patch.object(hier, "_in_node", return_value=symm_rows.SymmRowsTransport),
    ):
        return in_nodes_of_two(rank)


def groups_in_a_grid(rank: int) -> list[list[int]]:
    """Of torch.distributed: of this rank's rail, and of its node."""
    setup = mock.Mock(group=None, deadline=20.0)
    return [
        dist.get_process_group_ranks(hier._group_of(setup, ranks))
        for ranks in ([rank % 2, rank % 2 + 2], [rank // 2 * 2, rank // 2 * 2 + 1])
    ]


@contextlib.contextmanager
def files_as_symmetric_memory(folder: str, kind: str) -> Iterator[None]:
    five = Kernels(*(getattr(device_definition, name) for name in Kernels._fields))
    if kind == "triton":
        interpreter.hasten()
        with mock.patch.dict(os.environ, MOELA_BACKEND="triton"):
            five = kernels_for(torch.device("cpu"), 0)

    def symmetric(num_bytes: int, setup):
        paths = [Path(folder) / str(r) for r in setup.ranks]
        with paths[setup.rank].open("wb") as file:
            file.truncate(num_bytes)
        setup.store.set(f"file/{setup.rank}", "")
        setup.store.wait([f"file/{r}" for r in range(setup.num_ranks)])
        memories = [torch.from_file(str(p), shared=True, size=num_bytes, dtype=torch.uint8) for p in paths]
        return memories, [memory.data_ptr() for memory in memories]

    with (
        mock.patch.object(symm, "symmetric", symmetric),
        mock.patch.object(symm, "kernels_for", return_value=five),
        mock.patch.object(symm.SymmTransport, "why_not", return_value=None),
        mock.patch.object(symm.SymmTransport, "unfit", return_value=None),
    ):
        yield


def layers(rank: int, transport: str) -> str:
    """Every layout and form, eager and compiled, with the gradients of one process."""
    with EpBuffer(**layer.SETTINGS, transport=transport) as buffer:
        for layout in ("compact", "expert", "masked"):
            expect_dense(rank, lambda *a, layout=layout: layer.spread(*a, buffer.name, layout))
        dynamic = moela.ep_dispatch_dynamic
        expect_dense(rank, lambda *a: layer.spread(*a, buffer.name, "expert", dynamic))
        compiled = torch.compile(layer.spread, fullgraph=True, backend="aot_eager")
        expect_dense(rank, lambda *a: compiled(*a, buffer.name, "compact"))
        return buffer.transport.name


def expect_dense(rank: int, function) -> None:
    x, ids, weights, grad = layer.inputs(rank)
    got, wanted = function(x, ids, weights), layer.dense(x, ids, weights)
    assert torch.equal(got, wanted)
    gradients = (torch.autograd.grad(out, [x, weights], grad) for out in (got, wanted))
    for mine, theirs in zip(*gradients, strict=True):
        assert torch.equal(mine, theirs)


def in_parts_of_a_mesh(rank: int) -> list[int]:
    """A [1, 2] and a [2, 1] mesh: experts over both processes, and all of them on each."""
    sizes = []
    for shape in ((1, 2), (2, 1)):
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("data", "experts"))
        with EpBuffer(mesh.get_group("experts"), **layer.SETTINGS) as buffer:
            expect_dense(rank, lambda *a: layer.spread(*a, buffer.name, "compact"))
            sizes.append(buffer.num_ranks)
    return sizes


def trained_block(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A step of nn.MoE in bfloat16: the loss, summed over the ranks, and the gate's gradient."""
    torch.manual_seed(0)
    gate, experts = nn.TopkRouter(64, 8, 2), nn.Experts(64, 32, 8)
    with EpBuffer(num_experts=8, hidden=64, topk=2, max_tokens=8) as buffer:
        mine = range(buffer.first_expert, buffer.first_expert + buffer.num_local_experts)
        block = nn.MoE(gate, experts.part(mine), ep_group=buffer.name)
        x = torch.randn(16, 64, generator=torch.Generator().manual_seed(1))
        loss = block(x[8 * rank : 8 * rank + 8]).square().sum()
        loss.backward()
    total = torch.cat([loss.detach().view(1), gate.weight.grad.flatten()])
    dist.all_reduce(total)
    whole = nn.MoE(gate, experts)
    gate.weight.grad = None
    loss = whole(x).square().sum()
    loss.backward()
    return total, torch.cat([loss.detach().view(1), gate.weight.grad.flatten()])


def example(rank: int) -> list[float]:
    return _of_example("expert_parallel")["train"](steps=3)


def sharded(rank: int) -> list[tuple[str, float, float]]:
    """Of each parameter trained under FSDP: by how much it is off, and its size."""
    got, wanted = _of_example("expert_parallel_fsdp")["train"](steps=3), trained_alone(3)
    mine = moela.ep.expert_range(8, 2, rank % 2)
    found = []
    for name, p in wanted.items():
        part = p[mine.start : mine.stop] if name.startswith("experts") else p
        found.append((name, (got[name] - part).abs().max().item(), part.abs().max().item()))
    return found


def trained_alone(steps: int) -> dict[str, torch.Tensor]:
    """The same steps in one process."""
    example = _of_example("expert_parallel_fsdp")
    block = example["new_block"]()
    optimizer = torch.optim.SGD(block.parameters(), lr=1.0)
    batches = [example["tokens"](rank) for rank in range(4)]
    for _ in range(steps):
        optimizer.zero_grad()
        sum(torch.nn.functional.mse_loss(block(x), wanted) / 4 for x, wanted in batches).backward()
        optimizer.step()
    return {name: p.detach() for name, p in block.named_parameters()}


def _of_example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).parents[2] / f"examples/{name}.py"))


def other_settings(rank: int) -> str:
    try:
        EpBuffer(**layer.SETTINGS | {"hidden": 4 + rank})
    except ValueError as error:
        return str(error)


def late(rank: int, transport: str) -> tuple[str, list[int], int, float] | None:
    """Rank 1 stops, as a process under a debugger does; rank 0 continues it in the end."""
    return without_rank_1(rank, transport, signal.SIGSTOP, 2.0)


def lost(rank: int, transport: str) -> tuple[str, list[int], int, float] | None:
    return without_rank_1(rank, transport, signal.SIGKILL, 20.0)


def without_rank_1(rank: int, transport: str, how: int, deadline: float):
    """-> what rank 0 is told, about whom, in which epoch, and after how many seconds."""
    with EpBuffer(**layer.SETTINGS | {"deadline": deadline}, transport=transport) as buffer:
        pids = [0, 0]
        dist.all_gather_object(pids, os.getpid())
        args = [t.detach() for t in layer.inputs(rank)[:3]]
        layer.spread(*args, buffer.name, "compact")
        if rank == 1:
            os.kill(os.getpid(), how)
            return None
        start = time.monotonic()
        try:
            layer.spread(*args, buffer.name, "compact")
        except EpError as error:
            seconds = time.monotonic() - start
            os.kill(pids[1], signal.SIGCONT)
            return type(error).__name__, error.ranks, error.epoch, seconds


def in_nodes_of_two(rank: int) -> str:
    """Four processes as two nodes of two."""
    with EpBuffer(**layer.SETTINGS, transport="hier", ranks_per_node=2) as buffer:
        for layout in ("compact", "expert", "masked"):
            expect_dense(rank, lambda *a, layout=layout: layer.spread(*a, buffer.name, layout))
        return buffer.transport.name


def lost_in_nodes_of_two(rank: int) -> tuple[str, list[int], int, float] | None:
    """Rank 1 is killed -> what each of the others is told, about whom, in which epoch, after how long."""
    with EpBuffer(**layer.SETTINGS, transport="hier", ranks_per_node=2) as buffer:
        args = [t.detach() for t in layer.inputs(rank)[:3]]
        layer.spread(*args, buffer.name, "compact")
        dist.barrier()
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        start = time.monotonic()
        try:
            layer.spread(*args, buffer.name, "compact")
        except EpError as error:
            return type(error).__name__, error.ranks, error.epoch, time.monotonic() - start
