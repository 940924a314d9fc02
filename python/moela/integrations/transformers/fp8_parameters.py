"""Which tensors of a checkpoint become which parameter of a model, and whether they fit."""

from collections import defaultdict
from typing import Any

import torch
from torch import nn
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
    """Check that FP8 goes into FP8 modules and nothing else does, and that stacked experts are complete.

    transformers would cast what does not fit, without its scale factors.
    """
    for parameter, tensor in model.state_dict().items():
        found = sources.get(parameter, [])
        is_fp8 = tensor.dtype == torch.float8_e4m3fn
        for path, name, entry in found:
            if (entry.dtype == FP8) != is_fp8:
                wanted = FP8 if is_fp8 else str(tensor.dtype).removeprefix("torch.")
                todo = "see modules_to_not_convert"
                raise ValueError(f"{path}: {name}: expected {wanted}, got {entry.dtype}; {todo}")
        if is_fp8 and tensor.dim() == 3:
            wanted = tensor.size(0) * (2 if parameter.endswith("gate_up_proj") else 1)
            if len(found) not in (0, 1, wanted):
                path = found[0].path
                raise ValueError(f"{path}: {parameter}: expected {wanted} tensors, got {len(found)}")


def sf_dtype(parameter: str, sources: list[Source]) -> torch.dtype:
    """The dtype of the scale factors of a parameter, which has to be one for all experts."""
    dtypes = sorted({source.entry.dtype for source in sources})
    if len(dtypes) > 1:
        raise ValueError(f"{sources[0].path}: {parameter}: expected one dtype, got {' and '.join(dtypes)}")
    return SF_DTYPES[dtypes[0]]
