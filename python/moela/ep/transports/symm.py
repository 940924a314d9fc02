"""Processes of one host with a GPU each: kernels store into the memory of the other GPUs, over NVLink.

The memory is torch's symmetric memory. Which epoch is where, and who may touch what when:
csrc/cuda/block/ep_memory.h.
"""

import importlib.util

import torch

from moela.ep import device_kernels
from moela.ep.device_kernels import kernels_for
from moela.ep.rendezvous import Member, Rendezvous
from moela.ep.transports.base import DeviceTransport, Setup, memory_of, not_on_one_host


class SymmTransport(DeviceTransport):
    name = "symm"

    def __init__(self, setup: Setup) -> None:
        self.rank, self.num_ranks = setup.rank, setup.num_ranks
        self.kernels = kernels_for(setup.device, setup.row_bytes)
        self._memory, pointers = symmetric(memory_of(setup).num_bytes, setup)
        self.bases = torch.tensor(pointers, device=setup.device)

    @staticmethod
    def why_not() -> str | None:
        if not torch.cuda.is_available():
            return "torch sees no GPU"
        if importlib.util.find_spec("torch.distributed._symmetric_memory") is None:
            return "this torch has no symmetric memory"
        return device_kernels.why_not()

    @staticmethod
    def unfit(members: list[Member], is_local: bool) -> str | None:
        if is_local:
            return "the ranks are threads"
        if members[0].device == "cpu":
            return "only rows of GPU tensors can travel"
        return not_on_one_host(members)

    def close(self) -> None:
        self._memory = None


def symmetric(num_bytes: int, setup: Setup) -> tuple[object, list[int]]:
    """Zeros on every rank -> what keeps them, and where this process sees each. Raises where GPUs cannot."""
    import torch.distributed as dist
    import torch.distributed._symmetric_memory as symmetric_memory

    memory = error = None
    try:
        memory = symmetric_memory.empty(num_bytes, dtype=torch.uint8, device=setup.device).zero_()
        torch.cuda.synchronize(setup.device)
    except RuntimeError as e:
        error = str(e)
    # Whoever has memory would wait for who has none.
    meeting = Rendezvous(setup.store, "symm", setup.rank, setup.num_ranks, setup.deadline)
    for rank, why in enumerate(meeting.gather("allocated", error)):
        if why:
            raise RuntimeError(f"rank {rank} has no memory: {why}")
    handle = symmetric_memory.rendezvous(memory, setup.group or dist.group.WORLD)
    if not all(handle.buffer_ptrs):
        raise RuntimeError("not every GPU reaches the memory of all others")
    pointers = [pointer + handle.offset for pointer in handle.buffer_ptrs]
    if pointers[setup.rank] != memory.data_ptr():
        raise RuntimeError("torch's symmetric memory is not where the tensor is")
    return (memory, handle), pointers
