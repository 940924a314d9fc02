"""What csrc/ep/mailboxes.h says, in Python: by ctypes, so that one library serves every Python."""

import ctypes
from collections.abc import Callable, Iterator

from moela import backends

HEADER_BYTES = 256
MAX_RANKS = 64

_MEMORY = (ctypes.c_void_p, ctypes.c_int, ctypes.c_int)  # address, num_ranks, rank
_SIGNATURES = {
    "join": ((ctypes.c_uint64,), None),
    "post": ((ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p), None),
    "await_posts": ((ctypes.c_uint64, ctypes.c_double), ctypes.c_uint64),
    "header": ((ctypes.c_uint64, ctypes.c_int), ctypes.c_void_p),
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
    """A rank's view. Whoever makes it keeps the memory alive."""

    def __init__(self, address: int, num_ranks: int, rank: int) -> None:
        self._of_rank = lambda r: (address, num_ranks, r)
        self._mine = self._of_rank(rank)
        self._functions = dict(_functions())

    def join(self, first: int) -> None:
        self._functions["join"](*self._mine, first)

    def post(self, epoch: int, to: int, header: bytes) -> None:
        self._functions["post"](*self._mine, epoch, to, header)

    def await_posts(self, epoch: int, seconds: float) -> list[int]:
        return _ranks(self._functions["await_posts"](*self._mine, epoch, seconds))

    def header(self, epoch: int, rank: int) -> bytes:
        return ctypes.string_at(self._functions["header"](*self._mine, epoch, rank), HEADER_BYTES)

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
