"""Folders in the layout of published checkpoints: written whole or not at all, and checked before they are used.

    config.json
    model-00001-of-00002.safetensors …      every shard, its tensors in the order that safetensors writes
    model.safetensors.index.json            which shard has which tensor

Every fault of a file is a ValueError "<file>: [<tensor>: ]expected <what>, got <what>".
"""

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

# The header's names, in the order of the file: the widest first, so that every tensor is aligned.
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn}
CONFIG, INDEX = "config.json", "model.safetensors.index.json"
_MAX_HEADER_BYTES = 100_000_000  # the limit of safetensors itself


class Spec(NamedTuple):
    """A tensor as the header names its dtype, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


class Entry(NamedTuple):
    """What the header says of a tensor. begin and end count bytes from the end of the header."""

    spec: Spec
    begin: int
    end: int


Shard = Mapping[str, Spec]  # by name, in any order


def shard_names(count: int) -> list[str]:
    return [f"model-{index + 1:05}-of-{count:05}.safetensors" for index in range(count)]


def layout(shard: Shard) -> dict[str, Entry]:
    """The tensors where safetensors puts them: by the width of their dtype, then by name."""
    order = [*DTYPES]
    entries, begin = {}, 0
    for name, spec in sorted(shard.items(), key=lambda item: (order.index(item[1].dtype), item[0])):
        entries[name] = Entry(spec, begin, begin + spec.num_bytes)
        begin += spec.num_bytes
    return entries


def num_bytes(shards: Sequence[Shard]) -> int:
    """Of all tensors: the size of the files less some kilobytes of headers."""
    return sum(spec.num_bytes for shard in shards for spec in shard.values())


# --- writing ---------------------------------------------------------------------------------------------


def write(
    folder: Path,
    config: Mapping[str, Any],
    shards: Sequence[Shard],
    tensor: Callable[[str], Tensor],
    on_tensor: Callable[[], object],
) -> None:
    """Write a checkpoint; `folder` appears only when it is whole.

    Args:
        folder: to make; the folder around it is made too.
        config: of the model, for config.json.
        shards: what each file holds.
        tensor: makes the tensor of a name; one of them is in memory at a time.
        on_tensor: called after each.

    Raises:
        ValueError: the disk has no room, the folder cannot be written, or a tensor is not as its Spec says.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _check_room(folder, num_bytes(shards))
        part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=folder.name + ".", suffix=".part"))
        try:
            for name, shard in zip(shard_names(len(shards)), shards, strict=True):
                with (part / name).open("wb") as file:
                    _write_shard(file, layout(shard), tensor, on_tensor)
            for name, text in _texts(config, shards).items():
                (part / name).write_text(text)
            part.chmod(0o755)  # mkdtemp's are for nobody else
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise ValueError(f"{folder}: expected a folder to write to, got: {error.strerror}") from None


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder.parent).free
    if free < needed:
        raise ValueError(
            f"{folder}: expected {needed / 1e6:,.0f} MB free on its disk, got {free / 1e6:,.0f} MB; "
            "take fewer experts or another --dir"
        )


def _write_shard(
    file: BinaryIO,
    entries: Mapping[str, Entry],
    tensor: Callable[[str], Tensor],
    on_tensor: Callable[[], object],
) -> None:
    file.write(_header(entries))
    for name, entry in entries.items():
        t = tensor(name)
        if (t.dtype, tuple(t.shape)) != (DTYPES[entry.spec.dtype], entry.spec.shape):
            raise ValueError(f"{name}: expected {entry.spec}, got {t.dtype} {list(t.shape)}")
        file.write(t.contiguous().view(torch.uint8).numpy())
        on_tensor()


def _header(entries: Mapping[str, Entry]) -> bytes:
    """The length as eight bytes, then JSON, padded so that the tensors start at a multiple of eight."""
    fields: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for name, e in entries.items():
        fields[name] = {"dtype": e.spec.dtype, "shape": e.spec.shape, "data_offsets": (e.begin, e.end)}
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _texts(config: Mapping[str, Any], shards: Sequence[Shard]) -> dict[str, str]:
    """The files that are JSON."""
    where = {
        tensor: name
        for name, shard in zip(shard_names(len(shards)), shards, strict=True)
        for tensor in sorted(shard)
    }
    index = {"metadata": {"total_size": num_bytes(shards)}, "weight_map": where}
    return {name: json.dumps(data, indent=2) + "\n" for name, data in ((CONFIG, config), (INDEX, index))}


# --- checking --------------------------------------------------------------------------------------------


def check(folder: Path, config: Mapping[str, Any], shards: Sequence[Shard]) -> None:
    """Hold what `write` wrote against what it would write now, all but the values of the tensors.

    Headers are held against the sizes of their files, because reading a mapped page that a file does not have
    ends the process.

    Raises:
        ValueError: names the file, and what is wrong with it.
    """
    for name, wanted in _texts(config, shards).items():
        if _read(folder / name) != wanted.encode():
            raise ValueError(f"{folder / name}: expected what the demo writes, got something else")
    for name, shard in zip(shard_names(len(shards)), shards, strict=True):
        found = read_header(folder / name)
        for tensor, entry in layout(shard).items():
            if found.get(tensor) != entry:
                got = found.get(tensor, "none")
                raise ValueError(f"{folder / name}: {tensor}: expected {entry}, got {got}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: expected a readable file, got: {error.strerror}") from None


def read_header(path: Path) -> dict[str, Entry]:
    """By name, what the header says of each tensor, after it was held against the size of the file."""
    if path.is_dir():
        raise ValueError(f"{path}: expected a safetensors file, got a folder")
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            length = int.from_bytes(file.read(8), "little")
            is_json = file.read(1) in (b"{", b"")
            _check_header_length(path, length if is_json else 0, size)
            file.seek(8)
            text = file.read(length)
    except OSError as error:
        raise ValueError(f"{path}: expected a readable file, got: {error.strerror}") from None
    try:
        fields = json.loads(text)
        fields.pop("__metadata__", None)
        entries = {name: _entry(field) for name, field in fields.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{path}: expected the header of a safetensors file, got something else") from None
    whole = 8 + length + max((entry.end for entry in entries.values()), default=0)
    if size != whole:
        raise ValueError(
            f"{path}: expected {whole} bytes, got {size}: {'cut off' if size < whole else 'too long'}"
        )
    return entries


def _check_header_length(path: Path, length: int, size: int) -> None:
    if size < 8:
        raise ValueError(f"{path}: expected a safetensors file, got {size} bytes")
    if not 2 <= length <= _MAX_HEADER_BYTES:
        raise ValueError(f"{path}: expected the header of a safetensors file, got something else")
    if length > size - 8:
        raise ValueError(f"{path}: expected a header of {length} bytes, got {size - 8}: cut off")


def _entry(field: dict[str, Any]) -> Entry:
    begin, end = (int(offset) for offset in field["data_offsets"])
    return Entry(Spec(str(field["dtype"]), tuple(int(extent) for extent in field["shape"])), begin, end)
