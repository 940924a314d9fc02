"""What the ranks of test_shm do, each in a process of its own."""

import contextlib
import gc
import os
import random
import signal
import time
from pathlib import Path

import layer
import moela
import pytest
import torch
import torch.distributed as dist
from forks import connect
from moela.ep import EpBuffer, EpPeerLost
from moela.ep.transports.shm import ShmTransport

WIDTHS = (40, 7, 1)  # of the columns: more than a line, and no multiple of 16


def rows_of(epoch: int, rank: int, num_rows: int) -> list[torch.Tensor]:
    """Columns whose every byte says where it comes from."""
    g = torch.Generator().manual_seed(epoch * 100 + rank)
    return [torch.randint(256, (num_rows, width), dtype=torch.uint8, generator=g) for width in WIDTHS]


def plan_of(epoch: int, rank: int, num_ranks: int, max_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(epoch * 1000 + rank)
    counts = torch.randint(max_tokens + 1, (num_ranks,), dtype=torch.int32, generator=g)
    rows = torch.randint(max_tokens, (int(counts.sum()),), dtype=torch.int32, generator=g)
    return torch.cat([rows, rows.new_full((3,), -1)]), counts


def send(transport: ShmTransport, epoch: int, max_tokens: int = 16) -> None:
    rows, counts = plan_of(epoch, transport.rank, transport.num_ranks, max_tokens)
    transport.send(epoch, "test", rows_of(epoch, transport.rank, max_tokens), rows, counts)


def receive(transport: ShmTransport, epoch: int, max_tokens: int = 16) -> None:
    """What came is right; then it is overwritten, so that a row that stays away cannot look right."""
    me, num_ranks = transport.rank, transport.num_ranks
    received = transport.receive(epoch)
    for source in range(num_ranks):
        rows, counts = plan_of(epoch, source, num_ranks, max_tokens)
        first, n = int(counts[:me].sum()), int(counts[me])
        assert received.counts[source] == n
        wire = received.wire[received.starts[source] :][:n]
        for column, offset in zip(rows_of(epoch, source, max_tokens), (0, 48, 64), strict=True):
            expected = column[rows[first : first + n]]
            assert torch.equal(wire[:, offset : offset + column.size(1)], expected), (epoch, source)
    mine = received.starts[0]
    received.wire[mine : mine + num_ranks * max_tokens].fill_(0xFF)
    transport.release(epoch)


def exchange(transport: ShmTransport, epoch: int) -> None:
    send(transport, epoch)
    receive(transport, epoch)


def many_epochs(rank: int, store: Path, num_ranks: int, epochs: int) -> None:
    jitter = random.Random(rank)
    with_next = range(1, epochs + 1, 2)  # of every other pair both are sent before the first is received
    transport = connect(store, rank, num_ranks, deadline=50.0)
    for epoch in with_next:
        send(transport, epoch)
        if epoch % 4 == 1:
            send(transport, epoch + 1)
        time.sleep(jitter.choice([0, 0, 0, 0.0005]))
        receive(transport, epoch)
        if epoch % 4 == 3:
            send(transport, epoch + 1)
        receive(transport, epoch + 1)
    transport.close()


def give_up_in_the_second(rank: int, store: Path) -> list[str]:
    transport = connect(store, rank, 3)
    errors = []
    for epoch in range(1, 5):
        if epoch == 2 and rank == 1:
            transport.abort(epoch, "too much")
        else:
            send(transport, epoch)
        try:
            receive(transport, epoch)
        except ValueError as error:
            errors.append(str(error))
    transport.close()
    return errors


def send_different_things(rank: int, store: Path) -> str:
    transport = connect(store, rank, 2)
    x = torch.zeros(4, 8 + 16 * rank, dtype=torch.uint8)
    transport.send(1, "test", [x], torch.zeros(0, dtype=torch.int32), torch.zeros(2, dtype=torch.int32))
    with pytest.raises(ValueError, match="row_bytes") as error:
        transport.receive(1)
    transport.close()
    return str(error.value)


def lose(rank: int, store: Path, sig: signal.Signals, where: str, deadline: float) -> float:
    """Rank 1 of 3 gets a signal; the others say how long it took them to hear of it."""
    transport = connect(store, rank, 3, deadline=deadline)
    exchange(transport, 1)
    start = time.monotonic()
    try:
        for epoch in (2, 3, 4):
            if rank == 1 and where == "before sending":
                os.kill(os.getpid(), sig)
            send(transport, epoch)
            if rank == 1 and where == "after sending":
                os.kill(os.getpid(), sig)
            receive(transport, epoch)
    except Exception as error:
        error.args = (*error.args, time.monotonic() - start)
        raise
    finally:
        transport.close()


def be_slow(rank: int, store: Path) -> None:
    transport = connect(store, rank, 2)
    if rank == 1:
        time.sleep(0.5)
    for epoch in (1, 2):
        exchange(transport, epoch)
    transport.close()


def be_too_slow(rank: int, store: Path) -> None:
    """Rank 1 begins when rank 0 has given up."""
    transport = connect(store, rank, 2, deadline=0.1)
    has_given_up = store.with_suffix(".given_up")
    while rank == 1 and not has_given_up.exists():
        time.sleep(0.01)
    try:
        for epoch in (1, 2):  # what rank 0 sent in the first is there
            exchange(transport, epoch)
    finally:
        transport.close()
        has_given_up.touch()


def rebuild(rank: int, store: Path) -> int:
    transport = connect(store / "before", rank, 3)
    exchange(transport, 1)
    if rank == 0:  # the one that made the memory
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(EpPeerLost):
        exchange(transport, 2)
    transport.close()
    transport = connect(store / "after", rank - 1, 2)
    for epoch in (1, 2, 3):
        exchange(transport, epoch)
    transport.close()
    return transport.num_ranks


def last_words(rank: int, store: Path) -> None:
    transport = connect(store, rank, 2)
    send(transport, 1)
    if rank == 1:
        return  # closes nothing and ends
    time.sleep(0.2)
    receive(transport, 1)


def wait_half_a_second(rank: int, store: Path) -> float:
    transport = connect(store, rank, 2)
    exchange(transport, 1)
    before = time.process_time()
    if rank == 1:
        time.sleep(0.5)
    exchange(transport, 2)
    transport.close()
    return time.process_time() - before


def be_interrupted(rank: int, store: Path) -> None:
    transport = connect(store, rank, 2)
    if rank == 0:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        with pytest.raises(KeyboardInterrupt):
            exchange(transport, 1)
    else:
        time.sleep(0.5)
    transport.close()


def have_a_child(rank: int, store: Path) -> None:
    """A child that is forked, as a DataLoader does, is no rank, and what it closes stays open."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    with EpBuffer(**layer.SETTINGS, transport="shm") as buffer, torch.no_grad():
        args = layer.inputs(rank)[:3]
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                with pytest.raises(ValueError, match="group: expected the name of an open EpBuffer"), buffer:
                    moela.ep_dispatch(*args, group=buffer.name)
                os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        assert torch.equal(layer.spread(*args, buffer.name, "compact"), layer.dense(*args))


def leave_nothing(rank: int, store: Path) -> None:
    files, maps = Path("/proc/self/fd"), Path("/proc/self/maps")
    num_files = len([*files.iterdir()])
    transport = connect(store, rank, 2)
    exchange(transport, 1)
    assert "memfd:moela_ep" in maps.read_text()
    transport.close()
    transport.close()
    del transport
    gc.collect()
    assert "memfd:moela_ep" not in maps.read_text()
    assert len([*files.iterdir()]) <= num_files + 1  # the store's


def ask_for_too_much(rank: int, store: Path) -> None:
    connect(store, rank, 2, max_tokens=2**40)
