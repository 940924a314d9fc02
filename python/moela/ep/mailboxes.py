"""What csrc/ep/mailboxes.h says, in Python: by ctypes, so that one library serves every Python."""

import ctypes
import struct
from collections.abc import Callable, Iterator

from torch import Tensor

from moela import backends

HEADER_BYTES = 256
MAX_RANKS = 64

_MEMORY = (ctypes.c_void_p, ctypes.c_int, ctypes.c_int)  # address, num_ranks, rank
_SIGNATURES = {
    "join": ((ctypes.c_uint64,), None),
    "post": ((ctypes.c_char_p, ctypes.c_char_p), None),
    "await_counts": ((ctypes.c_uint64, ctypes.c_double, ctypes.c_void_p), ctypes.c_uint64),
    "read_headers": ((ctypes.c_uint64, ctypes.c_char_p), None),
    "release": ((ctypes.c_uint64,), None),
    "await_releases": ((ctypes.c_uint64, ctypes.c_double), ctypes.c_uint64),
    "leave": ((ctypes.c_int,), None),
    "has_left": ((), ctypes.c_int),
    "suspect_of": ((), ctypes.c_int),
}


def why_not() -> str | None:
    """Why the library cannot be used; None: it can."""
    return backends.library("ep").error


def num_bytes(num_ranks: int) -> int:
    """Of the memory that the ranks share, zero at first."""
    function = _library().moela_ep_bytes
    function.argtypes, function.restype = (ctypes.c_int,), ctypes.c_int64
    return function(num_ranks)


class Mailboxes:
    """A rank's view of memory, [*] uint8, that the ranks share."""

    def __init__(self, memory: Tensor, num_ranks: int, rank: int) -> None:
        self._memory, address = memory, memory.data_ptr()  # the memory lives as long as what points to it
        self._of_rank = lambda r: (address, num_ranks, r)
        self._mine = self._of_rank(rank)
        self._functions = dict(_functions())
        self._post, self._await_counts, self._release, self._await_releases = (
            self._functions[name] for name in ("post", "await_counts", "release", "await_releases")
        )
        self._pack_counts = struct.Struct(f"={num_ranks}i").pack

    def join(self, first: int) -> None:
        self._functions["join"](*self._mine, first)

    def post(self, header: bytes, counts: list[int]) -> None:
        """This header to each rank, with its count."""
        self._post(*self._mine, header, self._pack_counts(*counts))

    def await_counts(self, epoch: int, seconds: float, counts: int) -> list[int]:
        """The ranks that have not posted. If there is none, what came from each goes to [num_ranks] int32
        at this address; -1 where a header is that of an abort, or not as this rank's."""
        return _ranks(self._await_counts(*self._mine, epoch, seconds, counts))

    def read_headers(self, epoch: int) -> list[bytes]:
        """HEADER_BYTES from each rank."""
        headers = ctypes.create_string_buffer(self._mine[1] * HEADER_BYTES)
        self._functions["read_headers"](*self._mine, epoch, headers)
        return [headers.raw[i : i + HEADER_BYTES] for i in range(0, len(headers.raw), HEADER_BYTES)]

    def release(self, epoch: int) -> None:
        self._release(*self._mine, epoch)

    def await_releases(self, epoch: int, seconds: float) -> list[int]:
        """The ranks that have not released it."""
        return _ranks(self._await_releases(*self._mine, epoch, seconds))

    def leave(self, suspect: int | None) -> None:
        self._functions["leave"](*self._mine, -1 if suspect is None else suspect)

    def has_left(self, rank: int) -> bool:
        return bool(self._functions["has_left"](*self._of_rank(rank)))

    def suspect_of(self, rank: int) -> int | None:
        """Whose lateness made `rank` leave, if that is why it did."""
        suspect = self._functions["suspect_of"](*self._of_rank(rank))
        return None if suspect < 0 else suspect


def _library() -> ctypes.CDLL:
    handle = backends.library("ep").handle
    assert handle is not None, "the caller has asked why_not"
    return handle


def _functions() -> Iterator[tuple[str, Callable]]:
    for name, (arguments, result) in _SIGNATURES.items():
        function = getattr(_library(), f"moela_ep_{name}")
        function.argtypes, function.restype = (*_MEMORY, *arguments), result
        yield name, function


def _ranks(bits: int) -> list[int]:
    return [rank for rank in range(bits.bit_length()) if bits >> rank & 1] if bits else []
