"""Ranks that are threads of one process: for tests, examples, and programs before they are spread."""

import itertools
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch.distributed as dist

from moela.ep.errors import EpError

_numbers = itertools.count()


class LocalGroup:
    """The ranks of one process. Each is a thread, with an EpBuffer of its own on `group.rank(i)`."""

    def __init__(self, num_ranks: int) -> None:
        self.num_ranks = num_ranks
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


class LocalRank(NamedTuple):
    """What an EpBuffer takes as its group in the thread of a rank."""

    group: LocalGroup
    index: int


def run_local(num_ranks: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """Run ``function(group, *args)`` in a thread per rank, where group is that rank's.

    Args:
        num_ranks: how many threads.
        function: what each runs; group is what EpBuffer takes.
        args: passed on, the same to all.

    Returns:
        The results by rank. The first exception is raised here; ranks that wait for its thread end too.
    """
    group = LocalGroup(num_ranks)
    results: list[Any] = [None] * num_ranks
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
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
