"""The processes of a host with a GPU each, where the host knows what travels: the node's part of `hier`.

Headers, and with them counts, go as in the collective transport, which this is but for the rows: kernels
store them into the memory of the other GPUs.
"""

import torch
from torch import Tensor

from moela.ep.device import DeviceExchange, Status
from moela.ep.transports.base import Setup
from moela.ep.transports.collective import CollectiveTransport
from moela.ep.transports.symm import SymmTransport


class SymmRowsTransport(CollectiveTransport):
    name = "symm"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        try:
            self._memory = SymmTransport(setup)
        except BaseException:
            self.close()
            raise
        self._epochs = torch.zeros(2, dtype=torch.int64, device=setup.device)
        self._done = torch.zeros(2, dtype=torch.int32, device=setup.device)
        self._status = torch.zeros(1, dtype=torch.int64, device=setup.device)

    def _exchange(self, out: Tensor, mine: Tensor, out_counts: list[int], counts: list[int]) -> None:
        kernels, device, setup = self._memory.kernels, mine.device, self._setup
        x = DeviceExchange(
            bases=self._memory.bases,
            rank=self.rank,
            num_ranks=self.num_ranks,
            max_tokens=setup.max_tokens,
            max_row_bytes=setup.row_bytes,
            epochs=self._epochs,
            kind=0,  # the headers have said it
            row_bytes=mine.size(1),
            deadline_ns=round(setup.deadline * 1e9),
            done=self._done,
            status=self._status,
        )
        # Each row is a token of its own, with one place.
        slots = torch.arange(mine.size(0), dtype=torch.int32, device=device)[:, None]
        sent, came = (torch.tensor(n, dtype=torch.int32, device=device) for n in (counts, out_counts))
        kernels.send(x, [mine], [0], slots, sent, False)
        kernels.receive(
            x, "compact", [out], [0], 0, 0, 0, 0, 0, None, None, None, None, came, out.size(0)
        )  # fmt: skip
        if word := self._status.item():
            fault, peer, _ = Status.of(word)
            raise RuntimeError(f"rows by kernels: {fault.name}, rank {peer}")

    def close(self) -> None:
        super().close()
        self._memory = None
