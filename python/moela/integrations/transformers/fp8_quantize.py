"""Weights of any size to FP8 while they are loaded."""

from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import ConversionOps

import moela
from moela.integrations.transformers.fp8_checkpoint import BLOCK


class QuantizeBlocks(ConversionOps):
    """A weight -> itself in FP8 and its scale factors, one per 128 x 128 block; edges may be smaller."""

    def __init__(self, ue8m0: bool):
        self.ue8m0 = ue8m0

    def convert(self, input_dict: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        result = {}
        for name, value in input_dict.items():
            q, sf = self._quantize(name, value[0] if isinstance(value, list) else value)
            result[name] = q
            result[f"{name}_scale_inv"] = sf
        return result

    def _quantize(self, name: str, w: Tensor) -> tuple[Tensor, Tensor]:
        halves = 2 if name.endswith("gate_up_proj") else 1  # gate and up have blocks of their own
        *experts, N, K = w.shape
        q, sf = moela.per_block_quant_fp8(w.reshape(*experts, halves, N // halves, K), ue8m0=self.ue8m0)
        sf = sf.reshape(*experts, halves * -(-N // halves // BLOCK), -(-K // BLOCK))
        return q.view(w.shape), sf.to(torch.float8_e8m0fnu) if self.ue8m0 else sf
