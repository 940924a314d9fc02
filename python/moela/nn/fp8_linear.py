"""A linear layer whose weight stays FP8."""

import math

import torch
from torch import Tensor, nn

from moela.ops import _check, fp8_gemm, per_token_group_quant_fp8
from moela.reference.fp8_gemm import BLOCK

NAME = "moela.nn.run_fp8_linear"
E4M3 = torch.float8_e4m3fn


def run_fp8_linear(
    x: Tensor,
    weight: Tensor,
    sf: Tensor,
    bias: Tensor | None = None,
    *,
    quantize_activations: str | None = None,
) -> Tensor:
    """Compute ``y = x @ (weight * sf).T + bias``.

    Args:
        x: [..., K] bfloat16, float16 or float32; any leading dimensions, which may be 0.
        weight: [N, K] float8_e4m3fn, K contiguous. Any N and K.
        sf: [ceil(N/128), ceil(K/128)] float32, bfloat16 or float8_e8m0fnu: a checkpoint's `weight_scale_inv`.
        bias: [N] float32, bfloat16 or float16.
        quantize_activations: "fp8" or "fp8_ue8m0": x is cast to FP8 with a scale factor for each 128 columns.
            None: it is multiplied as it is.

    Returns:
        y: [..., N] of x's dtype. Differentiable with respect to x and bias; the weight is frozen. Where x is
        cast to FP8, backward raises.

    Numerics: those of `moela.fp8_gemm`: |error| <= u |y| + 2^-20 (sum_k |x||w| + |bias|) with u the unit
        roundoff of x's dtype, where x is what it was cast to.

    Source: DeepSeek-V3 technical report (arXiv 2412.19437), section 3.3; FP8Linear of transformers 5.24.0.
    """
    if x.dim() < 1 or weight.dim() != 2 or x.size(-1) != weight.size(1):
        _check_sizes(x, weight)  # the op checks the rest
    N, K = weight.shape
    a, sf_a = x.reshape(math.prod(x.shape[:-1]), K), None  # [M, K]
    if quantize_activations is not None:
        a, sf_a = per_token_group_quant_fp8(a.contiguous(), ue8m0=quantize_activations == "fp8_ue8m0")
    elif a.stride(-1) != 1:
        a = a.contiguous()
    if bias is not None and bias.requires_grad and torch.is_grad_enabled():  # for the op it is frozen
        y = (fp8_gemm(a, sf_a, weight, sf, out_dtype=torch.float32) + bias).to(x.dtype)
    else:
        y = fp8_gemm(a, sf_a, weight, sf, bias=bias, out_dtype=x.dtype)  # [M, N]
    return y.view(*x.shape[:-1], N)


def _check_sizes(x: Tensor, weight: Tensor) -> None:
    _check.expect_min_dim(NAME, "x", x, 1)
    _check.expect_dim(NAME, "weight", weight, 2)
    K = weight.size(1)
    _check.expect(x.size(-1) == K, NAME, "x", f"K={K} (that of weight)", f"K={x.size(-1)}")


class Fp8Linear(nn.Module):
    """`run_fp8_linear` with its weight, under the names of transformers' FP8Linear.

    Args:
        in_features, out_features: K and N, any.
        bias: whether there is one.
        sf_dtype: of the scale factors: float32, bfloat16 or float8_e8m0fnu.
        quantize_activations: as in `run_fp8_linear`.
        device, dtype: where the parameters are; dtype is that of the bias.

    The state dict has weight, weight_scale_inv and bias. Until one is loaded the weight is zero.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        *,
        sf_dtype: torch.dtype = torch.float32,
        quantize_activations: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.quantize_activations = quantize_activations
        blocks = (-(-out_features // BLOCK), -(-in_features // BLOCK))
        weight = torch.zeros((out_features, in_features), device=device, dtype=E4M3)
        self.weight = nn.Parameter(weight, requires_grad=False)
        sf = torch.ones(blocks, device=device).to(sf_dtype)
        self.weight_scale_inv = nn.Parameter(sf, requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None

    @classmethod
    def from_module(cls, module: nn.Module, *, quantize_activations: str | None = None) -> "Fp8Linear":
        """The same layer with the parameters of a transformers FP8Linear, which it shares.

        Raises ValueError for what it does not know: other weights than FP8 with 128 x 128 scale blocks, and a
        fixed scale for activations.
        """
        weight, sf = (getattr(module, name, None) for name in ("weight", "weight_scale_inv"))
        _expect(isinstance(weight, Tensor) and weight.dtype == E4M3, "a float8_e4m3fn weight", type(module))
        N, K = weight.shape
        shape = (-(-N // BLOCK), -(-K // BLOCK))
        got = None if sf is None else list(sf.shape)
        _expect(sf is not None and tuple(sf.shape) == shape, f"weight_scale_inv of shape {list(shape)}", got)
        scheme = getattr(module, "activation_scheme", "dynamic")
        _expect(scheme == "dynamic", "activation_scheme dynamic", scheme)
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        self.quantize_activations = quantize_activations
        self.weight, self.weight_scale_inv = weight, sf
        self.bias = getattr(module, "bias", None)
        return self.train(module.training)

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N]."""
        return run_fp8_linear(
            x, self.weight, self.weight_scale_inv, self.bias, quantize_activations=self.quantize_activations
        )

    def extra_repr(self) -> str:
        N, K = self.weight.shape
        return f"in_features={K}, out_features={N}, bias={self.bias is not None}"


def _expect(ok: bool, expected: str, got: object) -> None:
    _check.expect(ok, "moela.nn.Fp8Linear", "module", expected, got)
