"""Headers of safetensors files, held against the size of the file.

Reading a mapped page that the file does not have ends the process, so a file is judged by its header before
any tensor of it is touched. Every fault is a ValueError "<file>: [<tensor>: ]expected <what>, got <what>".
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
_MAX_HEADER_BYTES = 100_000_000  # the limit of safetensors itself


class Entry(NamedTuple):
    """What the header says of a tensor. begin and end count bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> dict[str, Entry]:
    """By name, what the header says of each tensor.

    Raises:
        ValueError: it is not a safetensors file, is cut off or too long, or a tensor has not the bytes that
        its
            shape and dtype need.
    """
    if path.is_dir():
        raise ValueError(f"{path}: expected a safetensors file, got a folder")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            is_json = file.read(1) in (b"{", b"")
            _check_length(path, length if is_json else 0, size)
            file.seek(8)
            text = file.read(length)
    except OSError as error:
        raise ValueError(f"{path}: expected a readable file, got: {error.strerror}") from None
    try:
        fields = json.loads(text)
        fields.pop("__metadata__", None)
        entries = {name: _entry(field, 8 + length) for name, field in fields.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{path}: expected the header of a safetensors file, got something else") from None
    whole = max((entry.end for entry in entries.values()), default=8 + length)
    if size != whole:
        fault = "cut off" if size < whole else "too long"
        raise ValueError(f"{path}: expected {whole} bytes, got {size}: {fault}")
    for name, entry in entries.items():
        _check_bytes(path, name, entry, 8 + length)
    return entries


def _check_length(path: Path, length: int, size: int) -> None:
    if size < 8:
        raise ValueError(f"{path}: expected a safetensors file, got {size} bytes")
    if not 2 <= length <= _MAX_HEADER_BYTES:
        raise ValueError(f"{path}: expected the header of a safetensors file, got something else")
    if length > size - 8:
        raise ValueError(f"{path}: expected a header of {length} bytes, got {size - 8}: cut off")


def _entry(field: dict[str, Any], data: int) -> Entry:
    begin, end = (data + int(offset) for offset in field["data_offsets"])
    return Entry(str(field["dtype"]), tuple(int(extent) for extent in field["shape"]), begin, end)


def _check_bytes(path: Path, name: str, entry: Entry, data: int) -> None:
    got = entry.end - entry.begin
    wanted = math.prod(entry.shape) * ITEM_BYTES.get(entry.dtype, 0) if entry.dtype in ITEM_BYTES else got
    if entry.begin < data or got != wanted:
        raise ValueError(f"{path}: {name}: expected {wanted} bytes, got {got}")
