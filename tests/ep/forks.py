"""Ranks that are processes which can be killed and stopped: forked, so that they start in milliseconds.

They are forked by a server that has started no thread. This process has: threads do not survive a fork, and
whoever waits for one of torch's pool then waits forever.
"""

import faulthandler
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from moela.ep.rendezvous import Member, Rendezvous
from moela.ep.transports import Setup
from moela.ep.transports.shm import ShmTransport

HARD_LIMIT = 60  # seconds; then a rank dumps its stacks and ends


@dataclass
class Ended:
    """How a rank ended: with a result, with an exception, or by a signal."""

    result: Any = None
    error: Exception | None = None
    exitcode: int = 0
    seconds: float = 0.0  # that the function ran


class Forks:
    """Runs functions of a module that lies beside this one."""

    def __init__(self, module: str) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        here = Path(__file__)
        env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(here.parent), *sys.path]))}
        command = [sys.executable, here, module, str(theirs.fileno())]
        self._server = subprocess.Popen(command, env=env, pass_fds=[theirs.fileno()])
        theirs.close()

    def run(self, num_ranks: int, function: str, *args: Any) -> list[Ended]:
        """Run ``function(rank, *args)`` in a process per rank; one that stops continues when others end."""
        self._pipe.send((num_ranks, function, args))
        return self._pipe.recv()

    def __enter__(self) -> "Forks":
        return self

    def __exit__(self, *error: object) -> None:
        self._pipe.close()
        self._server.wait()


def connect(store: Path, rank: int, num_ranks: int, **settings: Any) -> ShmTransport:
    """The transport of a rank, as EpBuffer makes it."""
    settings = {"max_tokens": 16, "row_bytes": 256, "deadline": 30.0} | settings
    meeting = Rendezvous(dist.FileStore(str(store), num_ranks), "test", rank, num_ranks, 30.0)
    members = tuple(Member(*m) for m in meeting.gather("members", Member.of_this_process()))
    setup = Setup(
        ranks=tuple(range(num_ranks)),
        rank=rank,
        num_ranks=num_ranks,
        key="test",
        device=torch.device("cpu"),
        members=members,
        store=dist.PrefixStore("shm", meeting.store),
        group=None,
        local=None,
        **settings,
    )
    built, error = None, None
    try:
        built = ShmTransport(setup)
    except (OSError, ValueError) as e:
        error = e
    if any(meeting.gather("built", error and str(error))):
        raise error or RuntimeError("another rank could not build it")
    return built


# --- in the server ---------------------------------------------------------------------------------------


def serve(module: str, pipe: Connection) -> None:
    functions = importlib.import_module(module)
    while True:
        try:
            num_ranks, name, args = pipe.recv()
        except EOFError:
            return
        pipe.send(run_forked(num_ranks, getattr(functions, name), args))


def run_forked(num_ranks: int, function: Callable[..., Any], args: tuple) -> list[Ended]:
    fork = multiprocessing.get_context("fork")
    pipes = [fork.Pipe(duplex=False) for _ in range(num_ranks)]
    processes = [
        fork.Process(target=run_rank, args=(pipes[rank][1], rank, function, args))
        for rank in range(num_ranks)
    ]
    for process in processes:
        process.start()
    for _, writer in pipes:
        writer.close()
    ended = [Ended(error=TimeoutError("hangs")) for _ in range(num_ranks)]
    waiting = set(range(num_ranks))
    end = time.monotonic() + HARD_LIMIT + 5
    while waiting and time.monotonic() < end:
        for rank in [r for r in waiting if pipes[r][0].poll(0.01)]:
            try:
                ended[rank] = pipes[rank][0].recv()
            except EOFError:
                processes[rank].join()
                ended[rank] = Ended(exitcode=processes[rank].exitcode)
            waiting.remove(rank)
        stopped = [r for r in waiting if is_stopped(processes[r].pid)]
        if len(stopped) == len(waiting):
            for rank in stopped:
                os.kill(processes[rank].pid, signal.SIGCONT)
    for process in processes:
        process.kill()
        process.join()
    return ended


def run_rank(pipe: Connection, rank: int, function: Callable[..., Any], args: tuple) -> None:
    faulthandler.dump_traceback_later(HARD_LIMIT, exit=True)
    torch.set_num_threads(1)
    ended, start = Ended(), time.monotonic()
    try:
        ended.result = function(rank, *args)
    except Exception as error:
        traceback.print_exc()
        ended.error = error
    ended.seconds = time.monotonic() - start
    pipe.send(ended)
    pipe.close()
    os._exit(0)


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


if __name__ == "__main__":
    sys.modules["forks"] = sys.modules["__main__"]  # an Ended that is sent is known by this name
    Ended.__module__ = "forks"
    serve(sys.argv[1], Connection(int(sys.argv[2])))
