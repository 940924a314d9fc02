"""FP8 checkpoints that stay FP8 on the CPU and on GPUs whose tensor cores do not multiply FP8.

There transformers dequantizes such a checkpoint while it loads it. `Fp8Quantizer` takes the place of its
quantizer for quant_method "fp8" and leaves everything else to it: the checkpoint is checked by its headers
(fp8_checkpoint, fp8_parameters), the modules get moela's forward (fp8_modules), stacked experts are views of
the files (mapped_experts), and scale factors keep the checkpoint's dtype.
"""

import warnings
from typing import Any

import torch
from torch import nn
from transformers import core_model_loading
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

from moela.integrations.mapped_memory import FileSpans
from moela.integrations.transformers.fp8_checkpoint import (
    FP8,
    SF_NAMES,
    Source,
    check_values,
    check_weight,
    read_sources,
    sf_name_of,
)
from moela.integrations.transformers.fp8_devices import all_multiply_fp8
from moela.integrations.transformers.fp8_modules import (
    check_config,
    declare_scale_factors,
    declare_weights,
    fp8_modules,
    scale_factor_names,
    take_over,
)
from moela.integrations.transformers.fp8_parameters import check_parameters, sf_dtype, sources_by_parameter
from moela.integrations.transformers.fp8_quantize import QuantizeBlocks
from moela.integrations.transformers.mapped_experts import map_stacks

METHOD = "fp8"
_stock: type[HfQuantizer] | None = None  # what `enable` replaced


def enable() -> None:
    global _stock
    current = AUTO_QUANTIZER_MAPPING[METHOD]
    if current is not Fp8Quantizer:
        _stock = current
        AUTO_QUANTIZER_MAPPING[METHOD] = Fp8Quantizer


def disable() -> None:
    global _stock
    current = AUTO_QUANTIZER_MAPPING[METHOD]
    if current is Fp8Quantizer:
        AUTO_QUANTIZER_MAPPING[METHOD] = _stock
    elif _stock is not None:
        warnings.warn(
            f"moela.disable_cpu_fp8: transformers' quantizer for {METHOD!r} is not moela's any more but "
            f"{current.__name__}; it is left in place",
            stacklevel=3,
        )
    _stock = None


class Fp8Quantizer(FineGrainedFP8HfQuantizer):
    """transformers' quantizer for block-scaled FP8, for devices that its own kernels do not run on."""

    def __init__(self, quantization_config: Any, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._is_stock = True
        # Until the weights are converted: the model and what its files have.
        self._unchecked: tuple[nn.Module, dict[str, Source]] | None = None
        # Until the model is loaded: the tensors of the files by parameter, where the files are mapped
        # and, with transformers < 5.8, what stacks experts.
        self._sources: dict[str, list[Source]] = {}
        self._spans: FileSpans | None = None
        self._stacks: list[Any] = []
        # What saving has to undo.
        self._sf_name = SF_NAMES[0]
        self._uint8_names: list[str] = []

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        self._is_stock = self.quantization_config.dequantize or all_multiply_fp8(device_map)
        if self._is_stock:
            super().validate_environment(*args, device_map=device_map, **kwargs)

    def update_tp_plan(self, config: Any) -> Any:  # until 5.20
        return super().update_tp_plan(config) if self._is_stock else config

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        if self._is_stock:
            super()._process_model_before_weight_loading(model, checkpoint_files=checkpoint_files, **kwargs)
            return
        check_config(self.quantization_config, model.config)
        super()._process_model_before_weight_loading(model, checkpoint_files=checkpoint_files, **kwargs)
        take_over(model)
        for _, module in fp8_modules(model):
            if not self.pre_quantized:
                declare_weights(module, torch.get_default_dtype())  # the model's, meanwhile
            for name in scale_factor_names(module):
                declare_scale_factors(module, name)
        files = [str(file) for file in checkpoint_files or () if str(file).endswith(".safetensors")]
        if not files or not self.pre_quantized:
            return
        sources = read_sources(files)
        self._sf_name, self._spans = sf_name_of(sources), FileSpans(files)
        self._unchecked = model, sources
        if not hasattr(HfQuantizer, "update_weight_conversions"):
            self._stacks = map_stacks(get_model_conversion_mapping(model), self._spans)
            self._check(get_model_conversion_mapping(model, None, self))

    def _check(self, transforms: list[Any]) -> None:
        """Check the checkpoint, once its names are known to be those of the model after `transforms`."""
        (model, sources), self._unchecked = self._unchecked, None
        self._sources = sources_by_parameter(model, sources, transforms)
        check_parameters(model, self._sources)
        is_blockwise = self.quantization_config.weight_block_size is not None
        for found in self._sources.values():  # not layers for multi-token prediction, which the model has not
            for source in found:
                if source.entry.dtype == FP8:
                    check_weight(sources, source, self._sf_name, is_blockwise)
        for module_name, module in fp8_modules(model):
            for name in scale_factor_names(module):
                parameter = f"{module_name}.{name}"
                declare_scale_factors(module, name, sf_dtype(parameter, self._sources.get(parameter, [])))

    def get_weight_conversions(self) -> list[Any]:
        conversions = super().get_weight_conversions()
        if self._is_stock:
            return conversions
        if self._sf_name != SF_NAMES[0]:
            conversions.append(WeightRenaming(rf"^(.+)\.{self._sf_name}(?!\w)", rf"\1.{SF_NAMES[0]}"))
        return conversions + self._stacks  # each takes the place of an earlier one with the same patterns

    def update_weight_conversions(self, weight_conversions: list[Any], *model: nn.Module) -> list[Any]:
        conversions = super().update_weight_conversions(weight_conversions, *model)
        if self._unchecked is not None:
            self._check(conversions)
            map_stacks(conversions, self._spans)
        return conversions

    def get_quantize_ops(self) -> Any:
        if self._is_stock or self.quantization_config.weight_block_size is None:
            return super().get_quantize_ops()
        return QuantizeBlocks(getattr(self.quantization_config, "scale_fmt", None) == "ue8m0")

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        if self._is_stock:
            return super()._process_model_after_weight_loading(model, **kwargs)
        for module_name, module in fp8_modules(model):
            for name in scale_factor_names(module):
                self._finish_scale_factors(f"{module_name}.{name}", module, name)
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
        self._sources, self._spans, self._stacks = {}, None, []
        if not self.pre_quantized:
            model._weight_conversions += self._sf_converters(model)
        if not hasattr(core_model_loading, "apply_renamings"):
            _keep_transformers_names(model)
        return model

    def _sf_converters(self, model: nn.Module) -> list[Any]:
        """What splits stacked scale factors for saving: transformers keeps only what it used for loading."""
        known = {tuple(each.source_patterns) for each in model._weight_conversions}
        return [
            each
            for each in get_model_conversion_mapping(model, None, self)
            if tuple(each.source_patterns) not in known
            and all(pattern.endswith(SF_NAMES[0]) for pattern in each.source_patterns)
        ]

    def _finish_scale_factors(self, parameter: str, module: nn.Module, name: str) -> None:
        sf = getattr(module, name)
        if sf.dtype == torch.uint8:
            self._uint8_names.append(parameter)
            sf = nn.Parameter(sf.data.view(torch.float8_e8m0fnu), requires_grad=False)
            setattr(module, name, sf)
        check_values(sf.data, parameter, self._sources.get(parameter, ()))

    def get_state_dict_and_metadata(self, model: nn.Module) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        if not self._uint8_names:
            return super().get_state_dict_and_metadata(model)
        state_dict = model.state_dict()
        for name in self._uint8_names:
            state_dict[name] = state_dict[name].view(torch.uint8)
        return state_dict, {}


def _keep_transformers_names(model: nn.Module) -> None:
    """Save scale factors as weight_scale_inv: until 5.22 a renaming cannot be undone for stacked experts."""
    model._weight_conversions = [
        each
        for each in model._weight_conversions
        if not (isinstance(each, WeightRenaming) and each.target_patterns[0].endswith(SF_NAMES[0]))
    ]
