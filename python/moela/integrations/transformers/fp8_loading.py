"""FP8 checkpoints that stay FP8 on the CPU and on GPUs whose tensor cores do not multiply FP8.

There transformers dequantizes such a checkpoint while it loads it. `Fp8Quantizer` takes the place of its
quantizer for quant_method "fp8" and leaves everything else to it: the checkpoint is checked by its headers
(fp8_checkpoint, fp8_parameters), the modules get moela's forward (fp8_modules), stacked experts are views of
the files (mapped_experts), and scale factors keep the checkpoint's dtype.
"""

import re
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
    SF_NAMES,
    Source,
    check_scale_factors,
    check_values,
    read_sources,
)
from moela.integrations.transformers.fp8_devices import all_multiply_fp8
from moela.integrations.transformers.fp8_modules import (
    check_config,
    declare_scale_factors,
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

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        self._is_stock = self.quantization_config.dequantize or all_multiply_fp8(device_map)
        self._sources: dict[str, list[Source]] = {}  # by parameter, until the model is loaded
        self._spans: FileSpans | None = None  # likewise
        self._stacks: list[Any] = []  # likewise, until 5.7
        self._sf_name = SF_NAMES[0]
        self._uint8_names: list[str] = []
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
        files = [str(file) for file in checkpoint_files or () if str(file).endswith(".safetensors")]
        if files and self.pre_quantized:
            self._check(model, read_sources(files))
            self._spans = FileSpans(files)
            if not hasattr(HfQuantizer, "update_weight_conversions"):
                self._stacks = map_stacks(get_model_conversion_mapping(model), self._spans)
        for module_name, module in fp8_modules(model):
            for name in scale_factor_names(module):
                parameter = f"{module_name}.{name}"
                sources = self._sources.get(parameter)
                declare_scale_factors(module, name, sf_dtype(parameter, sources) if sources else None)

    def _check(self, model: nn.Module, sources: dict[str, Source]) -> None:
        ignored = [re.compile(each) for each in model._keys_to_ignore_on_load_unexpected or ()]
        used = check_scale_factors(
            sources,
            self.quantization_config.weight_block_size is not None,
            lambda name: any(pattern.search(name) for pattern in ignored),
        )
        self._sf_name = used or SF_NAMES[0]
        transforms = get_model_conversion_mapping(model, None, self)
        self._sources = sources_by_parameter(model, sources, transforms)
        check_parameters(model, self._sources)

    def get_weight_conversions(self) -> list[Any]:
        conversions = super().get_weight_conversions()
        if self._is_stock:
            return conversions
        if self._sf_name != SF_NAMES[0]:
            conversions.append(WeightRenaming(rf"^(.+)\.{self._sf_name}(?!\w)", rf"\1.{SF_NAMES[0]}"))
        return conversions + self._stacks  # each takes the place of an earlier one with the same patterns

    def update_weight_conversions(self, weight_conversions: list[Any], *model: nn.Module) -> list[Any]:
        conversions = super().update_weight_conversions(weight_conversions, *model)
        if self._spans is not None:
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
        if not hasattr(core_model_loading, "apply_renamings"):
            _keep_transformers_names(model)
        return model

    def _finish_scale_factors(self, parameter: str, module: nn.Module, name: str) -> None:
        sf = getattr(module, name)
        if sf.dtype == torch.uint8:
            self._uint8_names.append(parameter)
            sf = nn.Parameter(sf.data.view(torch.float8_e8m0fnu), requires_grad=False)
            setattr(module, name, sf)
        check_values(sf.data, parameter, self._sources.get(parameter, ()))

    def get_state_dict_and_metadata(self, model: nn.Module) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        if not getattr(self, "_uint8_names", None):
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
