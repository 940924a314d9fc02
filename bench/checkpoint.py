"""Folders in the layout of published checkpoints: written whole or not at all, checked before they are used.

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
from moela.integrations.safetensors_header import read_header
from torch import Tensor

# The header's names, in the order of the file: the widest first, so that every tensor is aligned.
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn}
CONFIG, INDEX = "config.json", "model.safetensors.index.json"


class Spec(NamedTuple):
    """A tensor: its dtype as the header names it, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


Shard = Mapping[str, Spec]  # by name, in any order


def shard_names(count: int) -> list[str]:
    return [f"model-{index + 1:05}-of-{count:05}.safetensors" for index in range(count)]


def in_order(shard: Shard) -> list[tuple[str, Spec]]:
    """The tensors as safetensors orders them: by the width of their dtype, then by name."""
    order = [*DTYPES]
    return sorted(shard.items(), key=lambda item: (order.index(item[1].dtype), item[0]))


def total_bytes(shards: Sequence[Shard]) -> int:
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
        _check_room(folder, total_bytes(shards))
        part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=folder.name + ".", suffix=".part"))
        try:
            for name, shard in zip(shard_names(len(shards)), shards, strict=True):
                with (part / name).open("wb") as file:
                    _write_shard(file, in_order(shard), tensor, on_tensor)
            for name, text in _texts(config, shards).items():
                (part / name).write_text(text)
            part.chmod(0o755)  # a folder of mkdtemp is for nobody else
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
            "take fewer experts or another folder"
        )


def _write_shard(
    file: BinaryIO,
    specs: Sequence[tuple[str, Spec]],
    tensor: Callable[[str], Tensor],
    on_tensor: Callable[[], object],
) -> None:
    file.write(_header(specs))
    for name, spec in specs:
        t = tensor(name)
        if (t.dtype, tuple(t.shape)) != (DTYPES[spec.dtype], spec.shape):
            raise ValueError(f"{name}: expected {spec}, got {t.dtype} {list(t.shape)}")
        file.write(t.contiguous().view(torch.uint8).numpy())
        on_tensor()


def _header(specs: Sequence[tuple[str, Spec]]) -> bytes:
    """The length as eight bytes, then JSON, padded so that the tensors start at a multiple of eight."""
    fields: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, spec in specs:
        end = begin + spec.num_bytes
        fields[name] = {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": (begin, end)}
        begin = end
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
    index = {"metadata": {"total_size": total_bytes(shards)}, "weight_map": where}
    return {name: json.dumps(data, indent=2) + "\n" for name, data in ((CONFIG, config), (INDEX, index))}


# --- checking --------------------------------------------------------------------------------------------


def check(folder: Path, config: Mapping[str, Any], shards: Sequence[Shard]) -> None:
    """Hold a folder against what `write` would write now, all but the values of the tensors.

    Raises:
        ValueError: names the file, and what is wrong with it.
    """
    for name, wanted in _texts(config, shards).items():
        if _read(folder / name) != wanted.encode():
            raise ValueError(f"{folder / name}: expected the text that belongs to this model, got another")
    for name, shard in zip(shard_names(len(shards)), shards, strict=True):
        found = read_header(folder / name)
        for tensor, spec in shard.items():
            entry = found.get(tensor)
            got = Spec(entry.dtype, entry.shape) if entry else "no tensor of this name"
            if got != spec:
                raise ValueError(f"{folder / name}: {tensor}: expected {spec}, got {got}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: expected a readable file, got: {error.strerror}") from None
