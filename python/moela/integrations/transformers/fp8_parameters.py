"""Which tensors of a checkpoint become which parameter of a model, and whether they fit."""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from moela.integrations.transformers.fp8_checkpoint import FP8, SF_DTYPES, Source


def sources_by_parameter(
    model: nn.Module, sources: dict[str, Source], transforms: list[Any]
) -> dict[str, list[Source]]:
    """The tensors that transformers will load into each parameter, by its own renaming."""
    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    state_dict = model.state_dict()
    found = defaultdict(list)
    for name, source in sources.items():
        parameter, _ = rename_source_key(name, renamings, converters, model.base_model_prefix, state_dict)
        if parameter in state_dict:
            found[parameter].append(source)
    return dict(found)


def check_parameters(model: nn.Module, sources: dict[str, list[Source]]) -> None:
    """Check that FP8 goes into FP8 modules and nothing else does, and that all of it is there.

    transformers would cast what does not fit, without its scale factors, and fill in what is missing.
    """
    state_dict = model.state_dict()
    for parameter, found in sources.items():
        is_fp8 = state_dict[parameter].dtype == torch.float8_e4m3fn
        for path, name, entry in found:
            if entry.dtype == "F8_E5M2":
                raise ValueError(f"{path}: {name}: expected {FP8}, got F8_E5M2")
            if (entry.dtype == FP8) != is_fp8:
                wanted = FP8 if is_fp8 else str(state_dict[parameter].dtype).removeprefix("torch.")
                todo = "see modules_to_not_convert"
                raise ValueError(f"{path}: {name}: expected {wanted}, got {entry.dtype}; {todo}")
    folder = next((source.path.parent for found in sources.values() for source in found), "the checkpoint")
    for parameter, tensor in state_dict.items():
        if tensor.dtype == torch.float8_e4m3fn:
            count, wanted = len(sources.get(parameter, ())), _count(parameter, tensor)
            if count not in wanted:
                expected = f"{wanted[-1]} tensor{'s'[: wanted[-1] - 1]}"
                raise ValueError(f"{folder}: {parameter}: expected {expected}, got {count}")


def _count(parameter: str, tensor: Tensor) -> tuple[int, ...]:
    """How many tensors of a checkpoint make a parameter: one, or for stacked experts one for each matrix."""
    if tensor.dim() < 3:
        return (1,)
    return 1, tensor.size(0) * (2 if parameter.endswith("gate_up_proj") else 1)


def sf_dtype(parameter: str, sources: list[Source]) -> torch.dtype | None:
    """The one dtype of the scale factors behind a parameter, or None if there are none."""
    dtypes = sorted({source.entry.dtype for source in sources})
    if len(dtypes) > 1:
        raise ValueError(f"{sources[0].path}: {parameter}: expected one dtype, got {' and '.join(dtypes)}")
    return SF_DTYPES[dtypes[0]] if dtypes else None
