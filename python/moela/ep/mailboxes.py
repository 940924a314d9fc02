"""What csrc/ep/mailboxes.h says, in Python: by ctypes, so that one library serves every Python."""

import ctypes
from collections.abc import Callable, Iterator

from torch import Tensor

from moela import backends

HEADER_BYTES = 256
MAX_RANKS = 64

_MEMORY = (ctypes.c_void_p, ctypes.c_int, ctypes.c_int)  # address, num_ranks, rank
_SIGNATURES = {
    "join": ((ctypes.c_uint64,), None),
    "post": ((ctypes.c_uint64, ctypes.c_char_p), None),
    "await_posts": ((ctypes.c_uint64, ctypes.c_double), ctypes.c_uint64),
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
        self._headers = ctypes.create_string_buffer(num_ranks * HEADER_BYTES)
        self._functions = dict(_functions())

    def join(self, first: int) -> None:
        self._functions["join"](*self._mine, first)

    def post(self, epoch: int, headers: bytes) -> None:
        """[num_ranks, HEADER_BYTES], one to each rank."""
        self._functions["post"](*self._mine, epoch, headers)

    def await_posts(self, epoch: int, seconds: float) -> list[int]:
        return _ranks(self._functions["await_posts"](*self._mine, epoch, seconds))

    def read_headers(self, epoch: int) -> bytes:
        """[num_ranks, HEADER_BYTES], one from each rank."""
        self._functions["read_headers"](*self._mine, epoch, self._headers)
        return self._headers.raw

    def release(self, epoch: int) -> None:
        self._functions["release"](*self._mine, epoch)

    def await_releases(self, epoch: int, seconds: float) -> list[int]:
        return _ranks(self._functions["await_releases"](*self._mine, epoch, seconds))

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
    return [rank for rank in range(bits.bit_length()) if bits >> rank & 1]
