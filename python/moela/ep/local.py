"""Ranks that are threads of one process: for tests, examples, and programs before they are spread."""

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from moela.ep.errors import EpError

_numbers = itertools.count()


class LocalGroup:
    """The ranks of one process. Each is a thread, with an EpBuffer of its own on `group.rank(i)`.

    device: of their tensors. On a GPU each thread needs a current stream of its own, as `run_local` sets.
    """

    def __init__(self, num_ranks: int, device: torch.device | str = "cpu") -> None:
        self.num_ranks, self.device = num_ranks, torch.device(device)
        self.name = f"threads {next(_numbers)}"
        self.store = dist.HashStore()
        self.condition = threading.Condition()
        self.shared: dict[str, Any] = {}  # what transports of this process share, by the key of their buffer
        self.gone: set[int] = set()  # ranks whose thread has ended with an exception

    def rank(self, rank: int) -> "LocalRank":
        return LocalRank(self, rank)

    def leave(self, rank: int) -> None:
        """The thread of this rank takes part in nothing any more: whoever waits for it is told."""
        with self.condition:
            self.gone.add(rank)
            self.condition.notify_all()


@contextlib.contextmanager
def _stream_on(device: torch.device) -> Iterator[None]:
    """A stream of its own for this thread, where there are streams."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.default_stream(device))
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()


class LocalRank(NamedTuple):
    """What an EpBuffer takes as its group in the thread of a rank."""

    group: LocalGroup
    index: int


def run_local(
    num_ranks: int, function: Callable[..., Any], *args: Any, device: torch.device | str = "cpu"
) -> list[Any]:
    """Run ``function(group, *args)`` in a thread per rank, where group is that rank's.

    Args:
        num_ranks: how many threads.
        function: what each runs; group is what EpBuffer takes.
        args: passed on, the same to all.
        device: of the tensors that they exchange. On a GPU each thread has a stream of its own, which begins
            after the default stream and has ended when this returns; at most 8 of them run at once, unless
            CUDA_DEVICE_MAX_CONNECTIONS is set.

    Returns:
        The results by rank. The first exception is raised here; ranks that wait for its thread end too.
    """
    group = LocalGroup(num_ranks, device)
    results: list[Any] = [None] * num_ranks
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            with _stream_on(group.device):
                results[rank] = function(group.rank(rank), *args)
        except BaseException as error:  # every kind has to reach the caller's thread
            errors.append(error)
            group.leave(rank)

    threads = [threading.Thread(target=run, args=(rank,), name=f"rank {rank}") for rank in range(num_ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        # A rank that ended with an error of its own is why others lost it.
        raise next((e for e in errors if not isinstance(e, EpError)), errors[0])
    return results
