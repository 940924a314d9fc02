"""Exchanges that kernels do on their own, in memory that all ranks of a node see: what a kernel is given.

The memory of a rank, and who may touch what when: csrc/cuda/block/ep_memory.h, of which this is the mirror.
The five kernels of an exchange (send, place, receive; combine_send, combine_receive) are those of
`moela.kernels.ep_dispatch` and `ep_combine`, and on Hopper those of csrc/cuda; they are defined, in plain
torch, by tests/ep/device_definition.py.
"""

from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

from torch import Tensor

HEADER_WORDS = 4  # int32: count, row_bytes, kind, is_abort
MAX_COLUMNS = 8  # of a wire row


class Kernels(NamedTuple):
    """The five kernels. What each does: tests/ep/device_definition.py."""

    send: Callable[..., None]
    place: Callable[..., None]
    receive: Callable[..., None]
    combine_send: Callable[..., None]
    combine_receive: Callable[..., None]


class DeviceExchange(NamedTuple):
    """EpExchange of ep_memory.h, but for the epoch: that is counted where kernels can, so that a CUDA graph
    which is replayed goes on counting.

    What sends works on epochs[0] + 1, what receives on epochs[1] + 1; the last thread block to end writes it
    back, but for `place`, which comes before a `receive` of the same epoch.
    """

    bases: Tensor  # [R] int64 on the device: the address of each rank's memory, as this device sees it
    rank: int
    num_ranks: int
    max_tokens: int  # rows from one rank to another in an epoch, at most
    max_row_bytes: int  # a multiple of 16
    epochs: Tensor  # [2] int64 on the device: the last one sent, the last one received; 0 0 at the start
    kind: int  # 32 bits: what the rows are; the ranks have to agree
    row_bytes: int  # a multiple of 16
    deadline_ns: int  # that one wait may take
    done: Tensor  # [2] int32, zero before and after: thread blocks that have ended, of what sends, receives
    status: Tensor  # [1] int64: 0, or status_word(error, peer, epoch); the last of several


class Fault(IntEnum):
    """What may go wrong in a kernel. It still ends: without the rows of that peer, and with a status."""

    NOT_RELEASED = 1  # the peer has not released the epoch before the last within the deadline
    NOT_ARRIVED = 2  # nothing has come from the peer within the deadline
    ABORTED = 3  # the peer has given the epoch up
    DISAGREEMENT = 4  # the peer's rows are of another kind or size, or not as many as expected
    CAPACITY = 5  # more rows have come than there is room for


def status_word(fault: int, peer: int, epoch: int) -> int:
    return epoch << 32 | peer << 8 | fault


class Status(NamedTuple):
    """What a status word that is not 0 says."""

    fault: Fault
    peer: int
    epoch: int  # modulo 2^31

    @classmethod
    def of(cls, word: int) -> "Status":
        return cls(Fault(word & 0xFF), word >> 8 & 0xFFFFFF, word >> 32)


class Memory(NamedTuple):
    """Where things are in a rank's memory: offsets in bytes. All of it is zero before the first epoch, 1."""

    num_ranks: int
    max_tokens: int
    max_row_bytes: int

    def arrived_at(self, source: int) -> int:
        """int64: the last epoch whose rows are here."""
        return 8 * source

    def released_at(self, destination: int) -> int:
        """int64: the last epoch whose rows it does not need any more."""
        return 8 * (self.num_ranks + destination)

    def header_at(self, epoch: int, source: int) -> int:
        """HEADER_WORDS int32."""
        return 16 * self.num_ranks + 16 * self._slot_of(epoch, source)

    def rows_at(self, epoch: int, source: int) -> int:
        """[max_tokens, row_bytes], packed."""
        first = -(-48 * self.num_ranks // 128) * 128
        return first + self._slot_of(epoch, source) * self.max_tokens * self.max_row_bytes

    @property
    def num_bytes(self) -> int:
        return self.rows_at(1, self.num_ranks)

    def _slot_of(self, epoch: int, source: int) -> int:
        return epoch % 2 * self.num_ranks + source
