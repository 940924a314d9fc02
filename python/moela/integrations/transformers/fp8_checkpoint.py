"""What an FP8 checkpoint must have before a tensor of it is loaded.

Judged by the headers of its files alone: a missing or wrong tensor is a ValueError
"<file>: <tensor>: expected <what>, got <what>", and no page of weights is read.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from moela.integrations.safetensors_header import Entry, read_header

BLOCK = 128
FP8 = "F8_E4M3"
SF_DTYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F8_E8M0": torch.float8_e8m0fnu,
    "U8": torch.uint8,  # the exponent of an e8m0: the same byte
}
# What checkpoints call the scale factors of `<module>.weight`; they all multiply. transformers' is the first.
SF_NAMES = ("weight_scale_inv", "weight_scale", "scale", "qscale_weight")


class Source(NamedTuple):
    """A tensor of a file."""

    path: Path
    name: str
    entry: Entry


def read_sources(files: Iterable[str]) -> dict[str, Source]:
    """By name, every tensor of a checkpoint's files."""
    sources = {}
    for file in files:
        path = Path(file)
        sources.update({name: Source(path, name, entry) for name, entry in read_header(path).items()})
    return sources


def sf_name_of(sources: dict[str, Source]) -> str:
    """What this checkpoint calls its scale factors."""
    weights = [name.removesuffix("weight") for name, source in sources.items() if source.entry.dtype == FP8]
    found = Counter(sf_name for stem in weights for sf_name in SF_NAMES if f"{stem}{sf_name}" in sources)
    return found.most_common(1)[0][0] if found else SF_NAMES[0]


def check_weight(sources: dict[str, Source], weight: Source, sf_name: str, is_blockwise: bool) -> None:
    """Check the scale factors of an FP8 tensor: one for each 128 x 128 block, or else one for the tensor."""
    path, name, entry = weight
    stem, _, last = name.rpartition(".")
    wanted_name = f"{stem}.{sf_name}" if last == "weight" else f"{name}_scale_inv"  # experts stacked already
    found = sources.get(wanted_name)
    if found is None:
        raise ValueError(f"{path}: {wanted_name}: expected the scale factors of {name}, got no such tensor")
    where = f"{found.path}: {found.name}"
    if found.entry.dtype not in SF_DTYPES:
        raise ValueError(f"{where}: expected F32, BF16, F8_E8M0 or U8, got {found.entry.dtype}")
    shapes = [_blocks(name, entry.shape)] if is_blockwise else [(), (1,)]
    if found.entry.shape not in shapes:
        raise ValueError(f"{where}: expected shape {list(shapes[0])}, got {list(found.entry.shape)}")


def _blocks(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    *experts, N, K = shape
    halves = 2 if name.endswith("gate_up_proj") else 1  # gate and up have blocks of their own
    return (*experts, halves * -(-N // halves // BLOCK), -(-K // BLOCK))


def check_values(sf: Tensor, parameter: str, sources: Iterable[Source]) -> None:
    """Check loaded scale factors: positive finite numbers. `sources` are the tensors that they came from."""
    if not len(_wrong(sf)):
        return
    for path, name, _ in sources:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensor = file.get_tensor(name)
        wrong = _wrong(tensor.view(torch.float8_e8m0fnu) if tensor.dtype == torch.uint8 else tensor)
        if len(wrong):
            raise ValueError(f"{path}: {name}: expected positive finite numbers, got {wrong[0].item():g}")
    raise ValueError(f"{parameter}: expected positive finite numbers, got {_wrong(sf)[0].item():g}")


def _wrong(sf: Tensor) -> Tensor:
    values = sf.float()
    return values[~(values.isfinite() & (values > 0))]
