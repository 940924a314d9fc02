"""transformers' FP8Linear on moela."""

from torch import Tensor, nn

from moela.integrations.transformers import fp8
from moela.nn import run_fp8_linear


def fp8_linear_forward(self: nn.Module, input: Tensor) -> Tensor:
    """A forward for `FP8Linear`. [..., K] -> [..., N] of input's dtype."""
    if not fp8.is_quantized(self.weight):
        return nn.functional.linear(input, self.weight, self.bias)
    fp8.require("fp8_linear_forward", self, self.weight)
    return run_fp8_linear(
        input,
        self.weight,
        self.weight_scale_inv,
        self.bias,
        quantize_activations=fp8.quantize_activations(self, self.weight.device),
    )
