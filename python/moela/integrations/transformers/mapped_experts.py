"""The experts of a layer as views of the checkpoint's files.

transformers stacks per-expert matrices into `gate_up_proj` [E, 2*I, H] and `down_proj` [E, H, I] by
torch.stack and torch.cat, which copies the whole model. `MappedStack` stands in for these operations and maps
the same bytes (moela.integrations.mapped_memory); where that cannot be done it does what it stands for.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import Concatenate, ConversionOps, MergeModulelist, WeightConverter

from moela.integrations.mapped_memory import FileSpans, can_stack, stack_pieces


class Chain(ConversionOps):
    """Operations one after the other, as one."""

    def __init__(self, operations: list[ConversionOps]):
        self.operations = operations

    def convert(self, input_dict: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        for operation in self.operations:
            input_dict = operation.convert(input_dict, *args, **kwargs)
        return input_dict

    @property
    def reverse_op(self) -> ConversionOps:
        return Chain([operation.reverse_op for operation in reversed(self.operations)])


class MappedStack(Chain):
    """[MergeModulelist(0)] or [MergeModulelist(0), Concatenate(1)] of FP8 matrices, without the copy."""

    def __init__(self, operations: list[ConversionOps], spans: FileSpans):
        super().__init__(operations)
        self._spans = spans

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **kwargs: Any,
    ) -> dict[str, Any]:
        lists = [input_dict[pattern] for pattern in source_patterns if pattern in input_dict]
        stacked = _stack(lists, self._spans) if len(lists) == len(input_dict) else None
        if stacked is not None:
            return {target_patterns[0]: stacked}
        return super().convert(
            input_dict, source_patterns=source_patterns, target_patterns=target_patterns, **kwargs
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> "MappedStack":
        return self  # transformers copies a converter per layer; what was seen of the files is shared

    def __reduce__(self) -> tuple[Any, ...]:
        return Chain, (self.operations,)  # of a loaded model only the way back is needed


def _stack(lists: list[list[Tensor]], spans: FileSpans) -> Tensor | None:
    """[E, N, K] each, side by side along N -> [E, len(lists) * N, K]; None if it has to be copied."""
    tensors = [tensor for expert in zip(*lists, strict=False) for tensor in expert]
    if not tensors or len(tensors) != sum(len(each) for each in lists):
        return None
    shape, nbytes = tensors[0].shape, tensors[0].nbytes
    if len(shape) != 2 or not can_stack(nbytes):
        return None
    if any(t.dtype != torch.float8_e4m3fn or t.shape != shape for t in tensors):
        return None
    pieces = []
    for tensor in tensors:
        piece = spans.locate(tensor)
        if piece is None:
            return None
        pieces.append(piece)
    try:
        rows = stack_pieces(pieces, nbytes)
    except OSError:  # too many mappings for the system: copy, as transformers does
        return None
    return rows.view(torch.float8_e4m3fn).view(len(tensors) // len(lists), len(lists) * shape[0], shape[1])


def map_stacks(transforms: list[Any], spans: FileSpans) -> list[WeightConverter]:
    """Let those of `transforms` that stack experts map them; return these."""
    stacks = [t for t in transforms if isinstance(t, WeightConverter) and _stacks_experts(t.operations)]
    for converter in stacks:
        converter.operations = [MappedStack(converter.operations, spans)]
    return stacks


def _stacks_experts(operations: list[ConversionOps]) -> bool:
    types = [type(operation) for operation in operations]
    dims = [getattr(operation, "dim", None) for operation in operations]
    return (types, dims) in (
        ([MergeModulelist], [0]),
        ([MergeModulelist, Concatenate], [0, 1]),
    ) and not any(getattr(operation, "num_shards_attribute", None) for operation in operations)
