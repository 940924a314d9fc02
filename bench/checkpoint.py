"""FP8 shards in the layout of DeepSeek-V3's checkpoints: written for the demo, and mapped without a copy.

A shard has the routed experts of one layer. Per expert and projection, as published:

    model.layers.<l>.mlp.experts.<e>.{gate,up,down}_proj
        .weight              float8_e4m3fn [N, K]
        .weight_scale_inv    float32 [ceil(N/128), ceil(K/128)]

Every fault of a file is a ValueError "<file>: [<tensor>: ]expected <what>, got <what>".
"""

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from moela.shapes import ModelShape
from safetensors import SafetensorError, safe_open
from torch import Tensor

BLOCK = 128
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
# The header's names, and bytes per element.
_FP8, _FP32 = "F8_E4M3", "F32"
_ITEM_BYTES = {_FP8: 1, _FP32: 4}
_MAX_HEADER_BYTES = 100_000_000  # the limit of safetensors itself


class Weight(NamedTuple):
    """One matrix: q [N, K] float8_e4m3fn, sf [ceil(N/128), ceil(K/128)] float32."""

    q: Tensor
    sf: Tensor


class Expert(NamedTuple):
    """gate and up [intermediate, hidden], down [hidden, intermediate]."""

    gate: Weight
    up: Weight
    down: Weight


class Entry(NamedTuple):
    """What the header says of a tensor. begin and end count bytes from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def layer_index(model: ModelShape) -> int:
    """The first layer that has routed experts."""
    return model.num_dense_layers


def layout(model: ModelShape, num_experts: int) -> dict[str, Entry]:
    """By name, every tensor of a shard. Scale factors come first: behind them nothing needs an alignment."""
    specs: dict[str, tuple[str, tuple[int, int]]] = {}
    for dtype, suffix, block in ((_FP32, "weight_scale_inv", BLOCK), (_FP8, "weight", 1)):
        for expert in range(num_experts):
            for projection, (N, K) in zip(PROJECTIONS, _extents(model), strict=True):
                shape = (-(-N // block), -(-K // block))
                specs[f"{_prefix(model, expert)}.{projection}.{suffix}"] = dtype, shape
    entries, begin = {}, 0
    for name, (dtype, shape) in specs.items():
        end = begin + math.prod(shape) * _ITEM_BYTES[dtype]
        entries[name] = Entry(dtype, shape, begin, end)
        begin = end
    return entries


def _extents(model: ModelShape) -> tuple[tuple[int, int], ...]:
    H, intermediate = model.hidden, model.intermediate
    return (intermediate, H), (intermediate, H), (H, intermediate)


def _prefix(model: ModelShape, expert: int) -> str:
    return f"model.layers.{layer_index(model)}.mlp.experts.{expert}"


def named_tensors(model: ModelShape, index: int, expert: Expert) -> Iterator[tuple[str, Tensor]]:
    for projection, weight in zip(PROJECTIONS, expert, strict=True):
        yield f"{_prefix(model, index)}.{projection}.weight", weight.q
        yield f"{_prefix(model, index)}.{projection}.weight_scale_inv", weight.sf


def shard_bytes(model: ModelShape, num_experts: int) -> int:
    """Of the tensors: the size of the file less some kilobytes of header."""
    return max(entry.end for entry in layout(model, num_experts).values())


# --- writing ---------------------------------------------------------------------------------------------


def write_shard(
    path: Path,
    model: ModelShape,
    experts: Iterable[Expert],
    num_experts: int,
    on_expert: Callable[[int], object] | None = None,
) -> None:
    """Write the experts as they come; `path` appears only when it is whole.

    Args:
        path: of the file; its folder is made.
        experts: `num_experts` of them, one in memory at a time.
        on_expert: told the number of each expert that is written.

    Raises:
        ValueError: the disk has no room, the folder cannot be written, or an expert has a wrong shape.
    """
    entries = layout(model, num_experts)
    header = _header(entries)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_room(path, len(header) + shard_bytes(model, num_experts))
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=path.name + ".", suffix=".part", delete=False
        ) as file:
            part = Path(file.name)
            try:
                file.write(header)
                for index, expert in zip(range(num_experts), experts, strict=True):
                    for name, tensor in named_tensors(model, index, expert):
                        _write_tensor(file, len(header), name, entries[name], tensor)
                    if on_expert is not None:
                        on_expert(index)
                file.close()
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(f"{path}: expected a folder to write to, got: {error.strerror}") from None


def _header(entries: dict[str, Entry]) -> bytes:
    """The length as eight bytes, then JSON, padded so that the tensors start at a multiple of eight."""
    fields: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for name, e in entries.items():
        fields[name] = {"dtype": e.dtype, "shape": e.shape, "data_offsets": (e.begin, e.end)}
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _check_room(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise ValueError(
            f"{path}: expected {needed / 1e6:.0f} MB free on its disk, got {free / 1e6:.0f} MB; "
            "take fewer experts or another folder"
        )


def _write_tensor(file: BinaryIO, base: int, name: str, entry: Entry, tensor: Tensor) -> None:
    if tuple(tensor.shape) != entry.shape:
        raise ValueError(f"{name}: expected shape {list(entry.shape)}, got {list(tensor.shape)}")
    file.seek(base + entry.begin)
    file.write(tensor.contiguous().view(torch.uint8).numpy())


# --- reading ---------------------------------------------------------------------------------------------


def open_shard(path: Path, model: ModelShape, num_experts: int) -> list[Expert]:
    """Map the experts: views of the file's pages, which the system reads when they are first used.

    The header is held against the size of the file before any tensor is touched, because reading a mapped
    page that the file does not have ends the process.

    Raises:
        ValueError: it is not a safetensors file, is cut off, or lacks a tensor of the right dtype and shape.
    """
    found = read_header(path)
    for name, wanted in layout(model, num_experts).items():
        _check_entry(path, name, found.get(name), wanted)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            experts = [_expert(file, model, index) for index in range(num_experts)]
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: expected a safetensors file, got: {error}") from None
    for index, expert in enumerate(experts):
        for name, tensor in named_tensors(model, index, expert):
            if tensor.dtype == torch.float32:
                _check_scale_factors(path, name, tensor)
    return experts


def _expert(file: Any, model: ModelShape, index: int) -> Expert:
    prefix = _prefix(model, index)
    return Expert(
        *(
            Weight(
                file.get_tensor(f"{prefix}.{projection}.weight"),
                file.get_tensor(f"{prefix}.{projection}.weight_scale_inv"),
            )
            for projection in PROJECTIONS
        )
    )


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
    return Entry(str(field["dtype"]), tuple(int(extent) for extent in field["shape"]), begin, end)


def _check_entry(path: Path, name: str, found: Entry | None, wanted: Entry) -> None:
    if found is None:
        raise ValueError(f"{path}: {name}: expected a tensor of this name, got none")
    if found.dtype != wanted.dtype:
        raise ValueError(f"{path}: {name}: expected dtype {wanted.dtype}, got {found.dtype}")
    if found.shape != wanted.shape:
        raise ValueError(f"{path}: {name}: expected shape {list(wanted.shape)}, got {list(found.shape)}")
    num_bytes = wanted.end - wanted.begin
    if found.begin < 0 or found.end - found.begin != num_bytes:
        raise ValueError(f"{path}: {name}: expected {num_bytes} bytes, got {found.end - found.begin}")


def _check_scale_factors(path: Path, name: str, sf: Tensor) -> None:
    wrong = sf[~(sf.isfinite() & (sf > 0))]
    if len(wrong):
        raise ValueError(f"{path}: {name}: expected positive finite numbers, got {wrong[0].item():g}")


def is_mapped(tensor: Tensor, path: Path) -> bool | None:
    """Whether the tensor lies in pages of the file; None where the system does not tell."""
    try:
        maps = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    first, last = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    for line in maps:
        span, *_, name = line.split(maxsplit=5)
        begin, end = (int(address, 16) for address in span.split("-"))
        if begin <= first and last <= end:
            return name.rstrip() == str(path.resolve())
    return False
