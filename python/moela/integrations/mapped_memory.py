"""One tensor over pages of several places in files: `torch.stack` without the copy.

A checkpoint has one matrix per expert, the ops take all of them as one tensor. The rows of that tensor need
not be copied together: the system maps any page of a file to any page of memory, so the pieces are mapped one
behind the other. Where a piece ends inside a page, that page belongs to the next piece's mapping, and the few
bytes of its tail are written into it (the mapping is private, so the file keeps its own). A piece whose place
within a page is another one than most pieces have cannot be mapped into the same tensor and is read into
memory instead; so is the smaller part of a layer that lies in several files.

Linux only, like /proc/self/maps, from which the place of a tensor in its file is found.
"""

import bisect
import ctypes
import errno
import functools
import mmap
import os
import sys
import weakref
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000


class Piece(NamedTuple):
    """Bytes of a file from `offset` on."""

    path: str
    offset: int


def can_stack(piece_bytes: int) -> bool:
    """Whether pieces of this size can be mapped one behind the other."""
    return sys.platform == "linux" and piece_bytes > 0 and piece_bytes % mmap.PAGESIZE == 0


def stack_pieces(pieces: Sequence[Piece], piece_bytes: int) -> Tensor:
    """[len(pieces), piece_bytes] uint8, contiguous: row i is piece i, read when it is first used.

    The mapping lives as long as the tensor's storage does. Writing to the tensor does not change the files.

    Raises:
        OSError: a file cannot be read, or the system has no room for another mapping.
    """
    runs = list(_runs(pieces, piece_bytes))
    _expect_room(len(runs))
    residues = Counter(piece.offset % mmap.PAGESIZE for piece in pieces)
    residue = residues.most_common(1)[0][0]
    memory = _reserve(len(pieces) * piece_bytes + mmap.PAGESIZE)
    with ExitStack() as stack:
        files = {}
        for path in {piece.path for piece in pieces}:
            files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, files[path])
        _fill(memory, residue, runs, pieces, piece_bytes, files)
    num_bytes = len(pieces) * piece_bytes
    rows = torch.frombuffer(memory, dtype=torch.uint8, count=num_bytes, offset=residue)
    return rows.view(len(pieces), piece_bytes)


def _fill(
    memory: ctypes.Array,
    residue: int,
    runs: Sequence[tuple[int, int]],
    pieces: Sequence[Piece],
    piece_bytes: int,
    files: dict[str, int],
) -> None:
    """Put the pieces one behind the other, the first at byte `residue` of `memory`."""
    buffer = memoryview(memory).cast("B")
    unread = []  # bytes at the end of each run
    for first, count in runs:
        path, offset = pieces[first]
        if offset % mmap.PAGESIZE == residue:
            address = ctypes.addressof(memory) + first * piece_bytes
            flags = mmap.MAP_PRIVATE | _MAP_FIXED
            _mmap(address, count * piece_bytes, flags, files[path], offset - residue)
            unread.append(residue)
        else:
            unread.append(count * piece_bytes)
    # Only now: the end of a run lies in the page where the next one starts.
    for (first, count), num_bytes in zip(runs, unread, strict=True):
        path, offset = pieces[first]
        end = residue + (first + count) * piece_bytes
        _read(files[path], buffer[end - num_bytes : end], offset + count * piece_bytes - num_bytes)


def _runs(pieces: Sequence[Piece], piece_bytes: int) -> Iterable[tuple[int, int]]:
    """(first, count) of pieces that lie one behind the other in one file."""
    first = 0
    for i in range(1, len(pieces) + 1):
        end = Piece(pieces[i - 1].path, pieces[i - 1].offset + piece_bytes)
        if i == len(pieces) or pieces[i] != end:
            yield first, i - first
            first = i


def _expect_room(count: int) -> None:
    """Leave a quarter of the mappings that the system allows a process to everything else that needs some."""
    limit = int(Path("/proc/sys/vm/max_map_count").read_text())
    used = Path("/proc/self/maps").read_bytes().count(b"\n")
    if used + count > limit * 3 // 4:
        raise OSError(errno.ENOMEM, f"{used} of {limit} mappings are in use")


def _reserve(size: int) -> ctypes.Array:
    """Pages of zeros that take no memory before they are written to; given back with the last reference."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    memory = (ctypes.c_char * size).from_address(_mmap(None, size, flags, -1, 0))
    weakref.finalize(memory, _libc().munmap, ctypes.addressof(memory), size).atexit = False
    return memory


def _mmap(address: int | None, size: int, flags: int, file: int, offset: int) -> int:
    got = _libc().mmap(address, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, file, offset)
    if got == ctypes.c_void_p(-1).value:
        error = ctypes.get_errno()
        raise OSError(error, f"mmap: {os.strerror(error)}")
    return got


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc


def _read(file: int, buffer: memoryview, offset: int) -> None:
    while len(buffer):
        count = os.preadv(file, [buffer], offset)
        if count == 0:
            raise OSError(f"expected {len(buffer)} more bytes at {offset}, got the end of the file")
        buffer, offset = buffer[count:], offset + count


class FileSpans:
    """Which bytes of which file a tensor shows. Valid while the mappings that it has seen exist."""

    def __init__(self, paths: Iterable[str]):
        self._paths = {os.path.realpath(path) for path in paths}
        self._spans: list[tuple[int, int, int, str]] = []  # begin, end, offset in the file, path

    def locate(self, tensor: Tensor) -> Piece | None:
        """The place of a contiguous tensor, or None if it is not in a mapping of one of the files."""
        if tensor.device.type != "cpu" or not tensor.is_contiguous():
            return None
        piece = self._find(tensor)
        if piece is None:
            self._spans = _read_spans(self._paths)
            piece = self._find(tensor)
        return piece

    def _find(self, tensor: Tensor) -> Piece | None:
        first = tensor.data_ptr()
        i = bisect.bisect_right(self._spans, first, key=lambda span: span[0]) - 1
        if i < 0:
            return None
        begin, end, offset, path = self._spans[i]
        return Piece(path, offset + first - begin) if first + tensor.nbytes <= end else None


def _read_spans(paths: set[str]) -> list[tuple[int, int, int, str]]:
    spans = []
    try:
        with Path("/proc/self/maps").open() as lines:
            for line in lines:
                fields = line.rstrip("\n").split(maxsplit=5)
                if len(fields) == 6 and fields[5] in paths:
                    begin, end = (int(address, 16) for address in fields[0].split("-"))
                    spans.append((begin, end, int(fields[2], 16), fields[5]))
    except OSError:
        return []
    return spans
