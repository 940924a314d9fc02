"""What an FP8 checkpoint must have before a tensor of it is loaded.

Judged by the headers of its files alone: a missing or wrong tensor is a ValueError
"<file>: <tensor>: expected <what>, got <what>", and no page of weights is read.
"""

from collections.abc import Callable, Iterable
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


def check_scale_factors(
    sources: dict[str, Source], is_blockwise: bool, is_ignored: Callable[[str], bool]
) -> str | None:
    """Check that every FP8 tensor has scale factors of the right shape and dtype; return the name they have.

    Args:
        is_blockwise: one per 128 x 128 block; otherwise one per tensor.
        is_ignored: whether the model does not want a tensor (layers for multi-token prediction).
    """
    used = None
    for name, source in sources.items():
        if is_ignored(name):
            continue
        if source.entry.dtype == "F8_E5M2":
            raise ValueError(f"{source.path}: {name}: expected {FP8}, got F8_E5M2")
        if source.entry.dtype == FP8:
            found = _check_scale_factor(sources, source, is_blockwise)
            if used not in (None, found):
                raise ValueError(f"{source.path}: {name}: expected scale factors called {used}, got {found}")
            used = found
    return used


def _check_scale_factor(sources: dict[str, Source], source: Source, is_blockwise: bool) -> str:
    path, name, entry = source
    stem, _, last = name.rpartition(".")
    is_stacked = last != "weight"  # experts, as transformers has them in memory
    names = [f"{name}_scale_inv"] if is_stacked else [f"{stem}.{sf_name}" for sf_name in SF_NAMES]
    found = next((sources[each] for each in names if each in sources), None)
    if found is None:
        raise ValueError(
            f"{path}: {names[0]}: expected the scale factors of {name}, got no tensor of this name"
        )
    if found.entry.dtype not in SF_DTYPES:
        raise ValueError(
            f"{found.path}: {found.name}: expected {', '.join(SF_DTYPES)}, got {found.entry.dtype}"
        )
    wanted = [_blocks(name, entry.shape)] if is_blockwise else [(), (1,)]
    if found.entry.shape not in wanted:
        raise ValueError(
            f"{found.path}: {found.name}: expected shape {list(wanted[0])}, got {list(found.entry.shape)}"
        )
    return SF_NAMES[0] if is_stacked else found.name.rpartition(".")[2]


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
