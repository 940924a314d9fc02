"""EpBuffer: what the ranks of an expert-parallel group set up once, and the ops name."""

import itertools
import os
import threading
import uuid
from typing import Any

import torch
import torch.distributed as dist

from moela.ep.host_exchange import HostExchange
from moela.ep.kernel_exchange import KernelExchange
from moela.ep.local import LocalRank
from moela.ep.placement import expert_range
from moela.ep.rendezvous import Member, Notes, Rendezvous
from moela.ep.transports import (
    TRANSPORTS,
    DeviceTransport,
    Setup,
    Transport,
    faults_here,
    reasons_against,
)
from moela.ep.wire import ALIGNMENT, WireFormat

NAME = "EpBuffer"
DEADLINE = 30.0
_open: dict[str, "EpBuffer"] = {}
_numbers = itertools.count()
_lock = threading.Lock()  # ranks may be threads
# A process that is forked, as to load data, is no rank: it would take the place of its parent.
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_open.clear)


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
        device: of the tensors that are exchanged. None: the current GPU if the group uses NCCL, the device of
            `run_local` for its threads, otherwise "cpu".

    Attributes:
        name: what the ops take as `group`.
        rank, num_ranks: of the group.
        first_expert, num_local_experts: the experts of this rank.
        transport: the one that all ranks use; `.name` says which.
        device: of the tensors.
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
        deadline: float = DEADLINE,
        row_bytes: int | None = None,
        ranks_per_node: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        settings = {
            "num_experts": num_experts,
            "hidden": hidden,
            "topk": topk,
            "max_tokens": max_tokens,
            "row_bytes": row_bytes,
            "transport": transport,
            "deadline": deadline,
            "ranks_per_node": ranks_per_node,
        }
        meeting = _meeting(group, deadline if _is_finite(deadline) else DEADLINE)
        self.rank, self.num_ranks = meeting.rank, meeting.num_ranks
        error = _error_in(settings, self.num_ranks)
        try:
            self.device = _device_of(group, device)
        except (AssertionError, RuntimeError) as e:
            self.device, error = torch.device("cpu"), error or f"{NAME}: device: {e}"
        if error:
            settings = {}
        else:
            row_bytes = row_bytes or WireFormat((4 * hidden, 4 * topk, 4 * topk)).row_bytes
            self.row_bytes = -(-row_bytes // ALIGNMENT) * ALIGNMENT
            settings |= {"row_bytes": self.row_bytes, "device": self.device.type}
        self.num_experts, self.hidden, self.topk, self.max_tokens = num_experts, hidden, topk, max_tokens
        self.deadline = deadline
        self._local = group.group if isinstance(group, LocalRank) else None
        self._members = self._agree(meeting, settings, error)
        self.transport = self._build(meeting, group, transport)
        self.notes = Notes(meeting.store)
        mine = expert_range(num_experts, self.num_ranks, self.rank)
        self.first_expert, self.num_local_experts = mine.start, len(mine)
        self.checked: set[tuple] = set()  # kinds of arguments that an op has accepted: moela.ops._ep
        on_device = isinstance(self.transport, DeviceTransport)
        self.exchange = KernelExchange(self) if on_device else HostExchange(self)
        with _lock:
            self.name = f"ep{next(_numbers)}"
            _open[self.name] = self

    def _agree(self, meeting: Rendezvous, settings: dict[str, Any], error: str | None) -> list[Member]:
        """Compare what the ranks were given, and learn who they are. error: why a rank has no settings."""
        of_node = settings.get("ranks_per_node")
        member = Member.of_this_process(None if not of_node else str(self.rank // of_node), str(self.device))
        answer = {"settings": settings, "error": error, "member": member, "faults": faults_here()}
        answer["key"] = uuid.uuid4().hex
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
        self._reasons = reasons_against(
            [theirs["faults"] for theirs in answers], members, self._local is not None
        )
        return members

    def _build(self, meeting: Rendezvous, group: Any, wanted: str) -> Transport:
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
                device=self.device,
                members=tuple(self._members),
                store=dist.PrefixStore(name, meeting.store),
                group=None if self._local else group,
                local=self._local,
                ranks=tuple(range(self.num_ranks)),
            )
            built, error = None, None
            try:
                built = TRANSPORTS[name].on(self.device)(setup)
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

    def check(self) -> None:
        """Raise what has gone wrong and was not raised yet.

        On the host everything is raised where it happens. On a GPU, where ops do not wait, by the next op of
        this buffer that finds it, by this, which waits for the current stream, and at the end of a ``with``.
        """
        self.exchange.check()

    def has_ended(self, rank: int) -> bool:
        """Whether the process or the thread of a rank is known to have ended."""
        return not self._members[rank].is_alive() or (self._local is not None and rank in self._local.gone)

    def close(self) -> None:
        """Give back memory and connections, at once: peers that still wait for this rank raise EpPeerLost."""
        with _lock:
            if _open.pop(self.name, None) is None:
                return
        try:
            self.exchange.close()
        finally:
            self.transport.close()

    def __enter__(self) -> "EpBuffer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            if kind is None:
                self.check()
        finally:
            self.close()

    def __repr__(self) -> str:
        return (
            f"EpBuffer({self.name!r}, rank {self.rank} of {self.num_ranks}, {self.transport.name}, experts "
            f"{self.first_expert} to {self.first_expert + self.num_local_experts} of {self.num_experts})"
        )


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


def _device_of(group: Any, device: torch.device | str | None) -> torch.device:
    if device is None and isinstance(group, LocalRank):
        device = group.group.device
    elif device is None:
        device = "cuda" if "nccl" in str(dist.get_backend_config(group)) else "cpu"
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _error_in(settings: dict[str, Any], num_ranks: int) -> str | None:
    """Of any types: whatever it is, the other ranks are told."""
    for name in ("num_experts", "hidden", "topk", "max_tokens", "row_bytes"):
        value = settings[name]
        if not _is_count(value) and not (name == "row_bytes" and value is None):
            return f"{NAME}: {name}: expected a positive whole number, got {value!r}"
    if not _is_finite(settings["deadline"]):
        return f"{NAME}: deadline: expected a positive number, got {settings['deadline']!r}"
    of_node = settings["ranks_per_node"]
    if of_node is not None and not (_is_count(of_node) and num_ranks % of_node == 0):
        return f"{NAME}: ranks_per_node: expected a divisor of the {num_ranks} ranks, got {of_node!r}"
    transports = ("auto", *TRANSPORTS)
    if settings["transport"] not in transports:
        return f"{NAME}: transport: expected one of {', '.join(transports)}, got {settings['transport']!r}"
    return None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value > 0


def _is_finite(seconds: Any) -> bool:
    return isinstance(seconds, int | float) and 0 < seconds < float("inf")
