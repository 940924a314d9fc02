"""EpBuffer: what the ranks of an expert-parallel group set up once, and the ops name."""

import contextlib
import itertools
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from torch import Tensor

from moela.ep.errors import EpError
from moela.ep.local import LocalRank
from moela.ep.placement import expert_range
from moela.ep.rendezvous import Member, Rendezvous
from moela.ep.transports import TRANSPORTS, Received, Setup, Transport, faults_here, reasons_against
from moela.ep.wire import WireFormat

NAME = "EpBuffer"
MAX_IN_FLIGHT = 2
_open: dict[str, "EpBuffer"] = {}
_numbers = itertools.count()
_lock = threading.Lock()  # ranks may be threads


class EpBuffer:
    """The memory, the connections and the settings that the ranks of a group share, under a name for the ops.

    Every rank of the group builds one, with the same settings: they are compared, and where ranks disagree
    each raises the same ValueError. Nothing is built on first use, and nothing is closed when it is garbage
    collected: call close, or use it in a ``with``.

    Args:
        group: the ranks: a ProcessGroup (also of a DeviceMesh), None for all of torch.distributed, or what
            `run_local` gives a thread.
        num_experts: of all ranks. Rank r has a contiguous range, as torch.tensor_split cuts it: any number.
        hidden: elements of a token's row.
        topk: experts per token.
        max_tokens: tokens that one rank dispatches at once, at most.
        transport: "auto", or the name of one: see `moela info`.
        deadline: seconds that one wait for the other ranks may take; then EpTimeout.
        row_bytes: room for the row that travels; where extras need more, the error of the dispatch says how
            much. None: a float32 row with its ids and weights.
        ranks_per_node: how many ranks in a row, of one host, are a node for the transport "hier". None: the
            ranks of a host are.

    Attributes:
        name: what the ops take as `group`.
        rank, num_ranks: of the group.
        first_expert, num_local_experts: the experts of this rank.
        transport: the one that all ranks use; `.name` says which.
    """

    def __init__(
        self,
        group: "dist.ProcessGroup | LocalRank | None" = None,
        *,
        num_experts: int,
        hidden: int,
        topk: int,
        max_tokens: int,
        transport: str = "auto",
        deadline: float = 30.0,
        row_bytes: int | None = None,
        ranks_per_node: int | None = None,
    ) -> None:
        meeting = _meeting(group, deadline)  # first, so that ranks that fail below meet again
        self.num_experts, self.hidden, self.topk, self.max_tokens = num_experts, hidden, topk, max_tokens
        self.deadline = deadline
        self.row_bytes = row_bytes or WireFormat((4 * hidden, 4 * topk, 4 * topk)).row_bytes
        self.rank, self.num_ranks = meeting.rank, meeting.num_ranks
        settings = {
            "num_experts": num_experts,
            "hidden": hidden,
            "topk": topk,
            "max_tokens": max_tokens,
            "row_bytes": self.row_bytes,
            "transport": transport,
            "deadline": deadline,
            "ranks_per_node": ranks_per_node,
        }
        members = self._agree(meeting, settings, is_local=isinstance(group, LocalRank))
        self.transport = self._build(meeting, members, group, transport)
        mine = expert_range(num_experts, self.num_ranks, self.rank)
        self.first_expert, self.num_local_experts = mine.start, len(mine)
        self.own_rows: dict[int, Tensor] = {}  # by epoch: of what is not on its way, moela.ep.exchange
        self.checked: set[tuple] = set()  # kinds of arguments that an op has accepted: moela.ops._ep
        self._sent = self._received = 0  # the last epoch of each
        self._given_up: set[int] = set()  # epochs that this rank aborted and has not received
        self._watched = _Watched()
        with _lock:
            self.name = f"ep{next(_numbers)}"
            _open[self.name] = self

    def _agree(self, meeting: Rendezvous, settings: dict[str, Any], is_local: bool) -> list[Member]:
        """Compare what the ranks were given, and learn who they are."""
        of_node = settings["ranks_per_node"]
        member = Member.of_this_process(None if not of_node else str(self.rank // of_node))
        answer = {"settings": settings, "member": member, "faults": faults_here()}
        answer["key"] = uuid.uuid4().hex
        answer["error"] = _error_in(settings, self.num_ranks)
        answers = meeting.gather("settings", answer)
        for rank, theirs in enumerate(answers):
            if theirs["error"]:
                raise ValueError(f"{theirs['error']} (rank {rank})")
            for what, value in theirs["settings"].items():
                first = answers[0]["settings"][what]
                if value != first:
                    raise ValueError(
                        f"{NAME}: {what}: expected the same on all ranks, got {first!r} on rank 0 and "
                        f"{value!r} on rank {rank}"
                    )
        members = [Member(*theirs["member"]) for theirs in answers]
        self._key = answers[0]["key"]
        self._reasons = reasons_against([theirs["faults"] for theirs in answers], members, is_local)
        return members

    def _build(self, meeting: Rendezvous, members: list[Member], group: Any, wanted: str) -> Transport:
        """The first transport that every rank can build."""
        if wanted != "auto" and self._reasons[wanted]:
            raise ValueError(f"{NAME}: transport: {wanted!r} cannot be used: {self._reasons[wanted]}")
        names = [wanted] if wanted != "auto" else [n for n, why in self._reasons.items() if why is None]
        for name in names:
            setup = Setup(
                rank=self.rank,
                num_ranks=self.num_ranks,
                max_tokens=self.max_tokens,
                row_bytes=self.row_bytes,
                deadline=self.deadline,
                key=self._key,
                members=tuple(members),
                store=dist.PrefixStore(name, meeting.store),
                group=None if isinstance(group, LocalRank) else group,
                local=group.group if isinstance(group, LocalRank) else None,
                ranks=tuple(range(self.num_ranks)),
            )
            built, error = None, None
            try:
                built = TRANSPORTS[name](setup)
            except (OSError, RuntimeError, ValueError) as e:
                error = f"{type(e).__name__}: {e}"
            errors = meeting.gather(f"built {name}", error)
            if not any(errors):
                return built
            if built:
                built.close()
            rank, why = next((rank, e) for rank, e in enumerate(errors) if e)
            self._reasons[name] = f"rank {rank}: {why}"
        raise ValueError(f"{NAME}: transport: none can be used: {self._reasons}")

    # --- what the ops call: one exchange is one epoch -----------------------------------------------------

    def send(
        self, text: str, columns: list[Tensor], send_rows: Tensor, counts: Tensor, own_column: int = 0
    ) -> int:
        """Begin an exchange and return its epoch. See Transport.send."""
        self._make_room()
        with self._watched:
            self.transport.send(self._sent + 1, text, columns, send_rows, counts, own_column)
        self._sent += 1
        return self._sent

    def give_up(self, reason: str) -> None:
        """Tell the peers that this rank cannot take part in the next exchange: they raise ValueError."""
        self._make_room()
        with self._watched:
            epoch = self._sent + 1
            self.transport.abort(epoch, f"ep: rank {self.rank} gave up in epoch {epoch}: {reason}")
        self._sent += 1
        self._given_up.add(self._sent)

    @contextlib.contextmanager
    def receive(self, epoch: int) -> Iterator[Received]:
        """End the exchange. What it gives is valid in the ``with`` only."""
        self._drain(epoch)
        if epoch != self._received + 1:
            raise ValueError(
                f"ep: token: expected the exchange of epoch {self._received + 1}, got that of {epoch}; "
                "receive each once, in the order in which they were sent"
            )
        with self._watched:
            self._received = epoch
            received = self.transport.receive(epoch)
        try:
            yield received
        finally:
            self.transport.release(epoch)

    def _make_room(self) -> None:
        self._raise_fault()
        if self._sent - self._received == MAX_IN_FLIGHT and self._received + 1 in self._given_up:
            self._drain(self._received + 2)
        if self._sent - self._received == MAX_IN_FLIGHT:
            raise ValueError(
                f"ep: expected at most {MAX_IN_FLIGHT} exchanges sent and not received, got another"
            )

    def _drain(self, end: int) -> None:
        """Go through the epochs before `end` that this rank gave up, to stay in step with its peers."""
        self._raise_fault()
        while self._received + 1 < end and self._received + 1 in self._given_up:
            self._received += 1
            self._given_up.remove(self._received)
            with self._watched, contextlib.suppress(ValueError):  # its own reason, which it has raised
                self.transport.receive(self._received)

    def _raise_fault(self) -> None:
        if e := self._watched.fault:
            raise type(e)(
                e.ranks, e.epoch, f"{e.detail}; this EpBuffer is broken: close it and build another"
            )

    # ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give back memory and connections, at once: peers that still wait for this rank raise EpPeerLost."""
        with _lock:
            _open.pop(self.name, None)
        self.transport.close()

    def __enter__(self) -> "EpBuffer":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"EpBuffer({self.name!r}, rank {self.rank} of {self.num_ranks}, {self.transport.name}, experts "
            f"{self.first_expert} to {self.first_expert + self.num_local_experts} of {self.num_experts})"
        )


class _Watched:
    """Keeps what broke the buffer in a ``with``. A generator would cost each exchange four microseconds."""

    fault: EpError | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, EpError):
            self.fault = error


def buffer_of(group: str, op: str) -> EpBuffer:
    """The open buffer of that name."""
    buffer = _open.get(group)
    if buffer is None:
        wanted = f"expected the name of an open EpBuffer, got {group!r}; build one and pass its .name"
        raise ValueError(f"{op}: group: {wanted}")
    return buffer


def _meeting(group: Any, deadline: float) -> Rendezvous:
    """Where the ranks of the group meet to build their next buffer."""
    if isinstance(group, LocalRank):
        store, label, rank, size = (
            group.group.store,
            group.group.name,
            group.index,
            group.group.num_ranks,
        )
    else:
        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError(
                f"{NAME}: group: expected torch.distributed to be initialised, got a process without; call "
                "torch.distributed.init_process_group, or use moela.ep.run_local"
            )
        group = group or dist.group.WORLD
        if not isinstance(group, dist.ProcessGroup):
            raise ValueError(f"{NAME}: group: expected a process group that this rank is in, got {group!r}")
        store, label = dist.distributed_c10d._get_process_group_store(group), group.group_name
        rank, size = group.rank(), group.size()
    # Counted where all ranks see it, so that one that was replaced by a new process is in step.
    number = store.add(f"moela_ep/{label}/of rank {rank}", 1)
    return Rendezvous(store, f"moela_ep/{label}/{number}", rank, size, deadline)


def _error_in(settings: dict[str, Any], num_ranks: int) -> str | None:
    for name in ("num_experts", "hidden", "topk", "max_tokens", "row_bytes", "deadline"):
        if settings[name] <= 0:
            return f"{NAME}: {name}: expected a positive number, got {settings[name]}"
    of_node = settings["ranks_per_node"]
    if of_node is not None and (of_node <= 0 or num_ranks % of_node):
        return f"{NAME}: ranks_per_node: expected a divisor of the {num_ranks} ranks, got {of_node}"
    transports = ("auto", *TRANSPORTS)
    if settings["transport"] not in transports:
        return f"{NAME}: transport: expected one of {', '.join(transports)}, got {settings['transport']!r}"
    return None
