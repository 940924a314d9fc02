"""Ranks that are threads of one process, on one GPU: virtual ranks, with memory that each allocates."""

from collections import Counter

import torch

from moela.ep.device_kernels import kernels_for
from moela.ep.errors import EpTimeout
from moela.ep.rendezvous import Member
from moela.ep.transports.base import DeviceTransport, Setup, memory_of


class LocalDeviceTransport(DeviceTransport):
    name = "local"

    def __init__(self, setup: Setup) -> None:
        self.rank, self.num_ranks = setup.rank, setup.num_ranks
        self.kernels = kernels_for(setup.device, setup.row_bytes)
        memory = torch.zeros(memory_of(setup).num_bytes, dtype=torch.uint8, device=setup.device)
        stream = None
        if setup.device.type == "cuda":
            current = torch.cuda.current_stream(setup.device)
            current.synchronize()  # zeros, before a peer writes
            stream = current.cuda_stream
        parts = self._handed_round(setup, (memory, stream))
        if stream is not None and Counter(s for _, s in parts).most_common(1)[0][1] > 1:
            raise ValueError(
                "expected a stream of its own for every rank, got the same for two: kernels wait for those "
                "of other ranks; use run_local(..., device=...)"
            )
        self._memories = [
            memory for memory, _ in parts
        ]  # a peer's has to stay until this rank is done with it
        self.bases = torch.tensor([m.data_ptr() for m in self._memories], device=setup.device)

    @staticmethod
    def why_not() -> str | None:
        return None

    @staticmethod
    def unfit(members: list[Member], is_local: bool) -> str | None:
        return None if is_local else "the ranks are processes"

    def _handed_round(self, setup: Setup, mine) -> list:
        """What every rank gives, by rank."""
        condition = setup.local.condition
        with condition:
            given = setup.local.shared.setdefault((setup.key, self.name), {})
            given[self.rank] = mine
            condition.notify_all()
            if not condition.wait_for(lambda: len(given) == self.num_ranks, setup.deadline):
                missing = [rank for rank in range(self.num_ranks) if rank not in given]
                raise EpTimeout(missing, 0, "it allocated no memory")
            return [given[rank] for rank in range(self.num_ranks)]

    def close(self) -> None:
        self._memories = []
