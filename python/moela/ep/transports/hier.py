"""Nodes of several ranks each: a token travels once to a node, and in the node to the ranks that want it.

Two transports one after the other. The *rail* of a rank connects it with the ranks of its own place in every
other node: a row per (token, node) travels over it, with a word for each rank of that node, and is passed on
through the node's own transport. What a rank gets is what it would get from any transport: the rows of each
source, in the order in which they were sent.

Every rank goes through both stages in every epoch. What stops one stage is told to the other, so that it
reaches every rank: a reason to give up as it is, a rank that is lost by its number in the buffer.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from moela.ep.errors import EpError
from moela.ep.rendezvous import Member
from moela.ep.rows import received_rows
from moela.ep.transports.base import HostTransport, Received, Setup, expect_room, not_in_host_memory
from moela.ep.transports.collective import GRACE, CollectiveTransport
from moela.ep.transports.local import LocalTransport
from moela.ep.transports.shm import ShmTransport
from moela.ep.transports.symm import SymmTransport
from moela.ep.transports.symm_rows import SymmRowsTransport
from moela.ep.wire import WireFormat, wire_format


@dataclass
class _Stage:
    transport: HostTransport
    ranks: list[int]  # of the buffer
    posted: int = 0  # the last epoch that this rank sent or aborted


class HierTransport(HostTransport):
    name = "hier"

    def __init__(self, setup: Setup) -> None:
        self.rank, self.num_ranks = setup.rank, setup.num_ranks
        self._setup = setup
        nodes = _nodes(setup.members)
        self._num_nodes, self._node_size = len(nodes), len(nodes[0])
        self._node, self._place = next(
            (n, ranks.index(self.rank)) for n, ranks in enumerate(nodes) if self.rank in ranks
        )
        self._ranks = torch.tensor(nodes)  # [nodes, places]
        where = self._ranks.flatten().argsort()  # [R]: node * node_size + place
        self._node_of, self._place_of = where // self._node_size, where % self._node_size
        self._begun: dict[int, tuple[str, WireFormat]] = {}  # what this rank sent and has not received
        self._given_up: dict[int, str] = {}  # why, in epochs of which the node is not told yet
        word_bytes = WireFormat((4 * (1 + self._node_size),)).row_bytes
        rail = [ranks[self._place] for ranks in nodes]
        self._groups = (
            [] if setup.device.type == "cpu" else [_group_of(setup, r) for r in (rail, nodes[self._node])]
        )
        of_rail, of_node = self._groups or (None, None)
        on_rail = replace(_part(setup, rail, "rail", self._place), group=of_rail)
        self._rail = _Stage(CollectiveTransport(on_rail), rail)
        in_node = replace(
            _part(setup, nodes[self._node], "node", self._node),
            group=of_node,
            max_tokens=self._num_nodes * setup.max_tokens,
            row_bytes=setup.row_bytes + word_bytes,
            # A rank of the node that waits for its own rail in vain says so first.
            deadline=setup.deadline + 2 * min(GRACE, setup.deadline),
        )
        try:
            transport = _in_node(setup.device.type, setup.local is not None)(in_node)
        except BaseException:
            self._rail.transport.close()
            self._close_groups()
            raise
        self._in_node = _Stage(transport, nodes[self._node])

    @staticmethod
    def why_not() -> str | None:
        return CollectiveTransport.why_not() or ShmTransport.why_not()

    @staticmethod
    def unfit(members: list[Member], is_local: bool) -> str | None:
        if is_local and not_in_host_memory(members):
            return not_in_host_memory(members)
        nodes = _nodes(members)
        sizes = {len(ranks) for ranks in nodes}
        if len(nodes) < 2:
            return "the ranks are on one node"
        if len(sizes) > 1 or sizes == {1}:
            sizes = ", ".join(str(len(ranks)) for ranks in nodes)
            return f"expected as many ranks on each node, two or more, got {sizes}"
        if members[0].device != "cpu":
            connects = SymmTransport
        else:
            connects = LocalTransport if is_local else ShmTransport
        reasons = [connects.unfit([members[rank] for rank in ranks], is_local) for ranks in nodes]
        return next((f"in node {n}: {reason}" for n, reason in enumerate(reasons) if reason), None)

    def send(self, epoch, text, columns, send_rows, counts, own_column=0) -> None:
        form = wire_format(tuple(c.size(1) for c in columns))
        expect_room(self._setup, int(counts.max()), form.row_bytes)
        device = send_rows.device
        rows, words, to_nodes = self._merged(send_rows.cpu(), counts.cpu())
        # A copy more than a transport needs, in memory, for fewer bytes between nodes.
        wire = form.pack(columns, rows.to(device), rows.numel())
        order = torch.arange(rows.numel(), dtype=torch.int32, device=device)
        columns = [wire, words.view(torch.uint8).to(device)]
        with self._watched(epoch, self._rail, self._in_node):
            self._rail.transport.send(epoch, text, columns, order, to_nodes)
        self._rail.posted = epoch
        self._begun[epoch] = text, form

    def _merged(self, send_rows: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The send order with one row for all ranks of a node.

        -> [U] int32 rows of the columns, by node; [U, 1 + node_size] int32 words: this rank's node, and for
        each rank of the destination the place in the send order, -1: not to this one; [nodes] int32 counts.
        """
        ranks = torch.repeat_interleave(torch.arange(self.num_ranks), counts)
        keys = (self._node_of[ranks] << 32) + send_rows[: ranks.numel()]
        keys, merged = keys.unique(return_inverse=True)
        words = torch.full((keys.numel(), 1 + self._node_size), -1, dtype=torch.int32)
        words[:, 0] = self._node
        words[merged, 1 + self._place_of[ranks]] = torch.arange(ranks.numel(), dtype=torch.int32)
        to_nodes = (keys >> 32).bincount(minlength=self._num_nodes)
        return (keys & 0xFFFFFFFF).int(), words, to_nodes.int()

    def receive(self, epoch: int) -> Received:
        text, form = self._begun.pop(epoch, ("", None))
        self._pass_on(epoch, text, form)
        if epoch + 1 in self._given_up:
            self._tell_node(epoch + 1, self._given_up[epoch + 1])
        with self._watched(epoch, self._in_node, self._rail):
            wire, starts, counts = self._in_node.transport.receive(epoch)
        from_nodes = torch.zeros(self._node_size, self._num_nodes, dtype=torch.int32)
        for place, (start, n) in enumerate(zip(starts.tolist(), counts.tolist(), strict=True)):
            nodes = self._words(wire[start : start + n], form)[:, :4].contiguous().cpu().view(torch.int32)
            from_nodes[place] = nodes[:, 0].bincount(minlength=self._num_nodes)
        firsts = starts.view(-1, 1) + from_nodes.cumsum(1, dtype=torch.int32) - from_nodes
        # [places, nodes] to [R]
        order = self._ranks.T.flatten().argsort()
        return Received(wire[:, : form.row_bytes], firsts.flatten()[order], from_nodes.flatten()[order])

    def _pass_on(self, epoch: int, text: str, form: WireFormat | None) -> None:
        """What came over the rail to the ranks of the node, or that nothing will."""
        try:
            with self._watched(epoch, self._rail, self._in_node):
                wire, starts, counts = self._rail.transport.receive(epoch)
        except ValueError as error:
            self._tell_node(epoch, str(error))
            return
        rows = received_rows(starts, counts)
        words = self._words(wire, form).cpu()[rows].view(torch.int32)
        places, wanted = (words[:, 1:] >= 0).T.nonzero(as_tuple=True)
        # By destination, then source, then as the source sent it: sorting keeps the order of destinations.
        keys = (places * self._num_nodes + words[wanted, 0]) << 32
        order = (keys + words[wanted, 1 + places]).argsort()
        to_ranks = places.bincount(minlength=self._node_size).int()
        with self._watched(epoch, self._in_node, self._rail):
            passed_on = rows[wanted[order]].to(wire.device)
            self._in_node.transport.send(epoch, text, [wire], passed_on, to_ranks)
        self._in_node.posted = epoch
        self._rail.transport.release(epoch)

    def _words(self, wire: Tensor, form: WireFormat) -> Tensor:
        return wire[:, form.row_bytes : form.row_bytes + 4 * (1 + self._node_size)]

    def release(self, epoch: int) -> None:
        self._in_node.transport.release(epoch)

    def abort(self, epoch: int, reason: str) -> None:
        with self._watched(epoch, self._rail, self._in_node):
            self._rail.transport.abort(epoch, reason)
        self._rail.posted = epoch
        self._given_up[epoch] = reason
        if self._in_node.posted == epoch - 1:  # else when its turn comes
            self._tell_node(epoch, reason)

    def _tell_node(self, epoch: int, reason: str) -> None:
        self._given_up.pop(epoch, None)
        if self._in_node.posted < epoch:
            self._in_node.transport.abort(epoch, reason)
            self._in_node.posted = epoch

    def close(self) -> None:
        for stage in (self._rail, self._in_node):
            stage.transport.close()
        self._close_groups()

    def _close_groups(self) -> None:
        for group in self._groups:
            dist.destroy_process_group(group)
        self._groups = []

    @contextlib.contextmanager
    def _watched(self, epoch: int, stage: _Stage, other: _Stage) -> Iterator[None]:
        """A rank that fails to answer in one stage is named to the ranks of the other."""
        try:
            yield
        except (EpError, ValueError) as cause:
            if isinstance(cause, EpError):
                error = type(cause)([stage.ranks[rank] for rank in cause.ranks], epoch, cause.detail)
            else:  # perhaps what a rank of this stage says about another
                error = EpError.from_text(str(cause), epoch)
            if error is None:
                raise
            error = self._first(error)
            with contextlib.suppress(EpError):
                other.transport.abort(other.posted + 1, error.as_text())
            raise error from cause

    def _first(self, error: EpError) -> EpError:
        """What failed first: a rank that gives up on another is missed by those that it does not meet."""
        with contextlib.suppress(RuntimeError):  # the store may be gone with its rank
            text = self._setup.store.compare_set("first", "", error.as_text()).decode()
            return EpError.from_text(text, error.epoch)
        return error


def _nodes(members: list[Member] | tuple[Member, ...]) -> list[list[int]]:
    """The ranks of each node, nodes in the order of their first ranks."""
    nodes: dict[str, list[int]] = {}
    for rank, member in enumerate(members):
        nodes.setdefault(member.node, []).append(rank)
    return [*nodes.values()]


def _in_node(device: str, is_local: bool) -> type[HostTransport]:
    """What connects the ranks of a node."""
    if is_local:
        return LocalTransport
    return ShmTransport if device == "cpu" else SymmRowsTransport


def _group_of(setup: Setup, ranks: list[int]) -> "dist.ProcessGroup":
    """A group of torch.distributed for some of the ranks: rows that are not in host memory travel by one."""
    of_all = dist.get_process_group_ranks(setup.group or dist.group.WORLD)
    return dist.new_group(
        [of_all[rank] for rank in ranks],
        timeout=timedelta(seconds=setup.deadline),
        use_local_synchronization=True,  # the others have groups of their own
    )


def _part(setup: Setup, ranks: list[int], what: str, number: int) -> Setup:
    """What connects some of the ranks is built from."""
    return replace(
        setup,
        rank=ranks.index(setup.rank),
        num_ranks=len(ranks),
        key=f"{setup.key}/{what}/{number}",
        members=tuple(setup.members[rank] for rank in ranks),
        store=dist.PrefixStore(f"{what}/{number}", setup.store),
        group=None,
        ranks=tuple(ranks),
    )
