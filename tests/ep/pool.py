"""Processes of torch.distributed with Gloo, started once: that takes longer than their tests."""

import faulthandler
import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

LIMIT = 250  # seconds for one function; then its process prints its stacks and ends


class Pool:
    """Processes that run functions of modules that they can import too."""

    def __init__(self, num_ranks: int, store: Path) -> None:
        spawn = multiprocessing.get_context("spawn")
        pipes = [spawn.Pipe() for _ in range(num_ranks)]
        self._pipes = [mine for mine, _ in pipes]
        self.processes = [
            spawn.Process(target=_serve, args=(rank, num_ranks, str(store), theirs), daemon=True)
            for rank, (_, theirs) in enumerate(pipes)
        ]
        for process in self.processes:
            process.start()
        for _, theirs in pipes:
            theirs.close()

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """``function(rank, *args)`` on every rank -> the results; of a rank that has ended: None."""
        for pipe in self._pipes:
            pipe.send((function, args))
        answers = [self._answer(rank) for rank in range(len(self._pipes))]
        failed = [f"rank {rank}: {error}" for rank, (_, error) in enumerate(answers) if error]
        assert not failed, "\n".join(failed)
        return [result for result, _ in answers]

    def _answer(self, rank: int) -> tuple[Any, str | None]:
        try:
            return self._pipes[rank].recv()
        except EOFError:
            return None, None

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self.processes:
            process.join(5)
            process.kill()


def _serve(rank: int, num_ranks: int, store: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=num_ranks)
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        faulthandler.dump_traceback_later(LIMIT, exit=True)
        try:
            pipe.send((function(rank, *args), None))
        except Exception:  # whatever it is, the test is told
            pipe.send((None, traceback.format_exc()))
        faulthandler.cancel_dump_traceback_later()
