"""Definition of ``fused_experts``: each expert's gated MLP on its tokens, weighted and summed per token."""

import torch
from torch import Tensor

from moela.reference.fp8_gemm import dequantize_blocks, dequantize_rows
from moela.reference.per_token_group_quant_fp8 import per_token_group_quant_fp8
from moela.reference.silu_and_mul import swiglu


def fused_experts(
    x: Tensor,
    w13: Tensor,
    w2: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    *,
    sf_w13: Tensor | None = None,
    sf_w2: Tensor | None = None,
    b13: Tensor | None = None,
    b2: Tensor | None = None,
    activation: str = "silu",
    limit: float | None = None,
    alpha: float | None = None,
    quantize_activations: str | None = None,
) -> Tensor:
    """The specification of ``moela.fused_experts``: float64 but for the activation's argument, a float32."""
    a = as_multiplied(x, quantize_activations)  # [num_tokens, hidden]
    out = torch.zeros_like(a)
    for expert in range(w13.size(0)):
        token, weight = tokens_of(expert, topk_weights, topk_ids)  # [num_rows], [num_rows, 1]
        if token.numel():
            gate_up = linear(a[token], *parameters(expert, w13, sf_w13, b13))  # [num_rows, 2 * intermediate]
            h = swiglu(gate_up.float(), limit, alpha)  # [num_rows, intermediate]
            h = as_multiplied(h, quantize_activations)
            out[token] += weight * linear(h, *parameters(expert, w2, sf_w2, b2))  # [num_rows, hidden]
    return out.to(x.dtype)


def tokens_of(expert: int, topk_weights: Tensor, topk_ids: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens that picked the expert, ascending, and their weights [num_rows, 1]; who picks twice has the
    sum of both. A weight of another id is not looked at."""
    picked = topk_ids == expert  # [num_tokens, topk]
    token = picked.any(1).nonzero().flatten()
    weight = topk_weights.double().where(picked, 0.0).sum(1, keepdim=True)  # [num_tokens, 1]
    return token, weight[token]


def as_multiplied(x: Tensor, quantize_activations: str | None) -> Tensor:
    """The float64 that the weights meet: x itself, or what its cast to FP8 stands for."""
    if quantize_activations is None:
        return x.double()
    q, sf = per_token_group_quant_fp8(x.float(), ue8m0=quantize_activations == "fp8_ue8m0")
    return dequantize_rows(q, sf, torch.float64)


def parameters(
    expert: int, w: Tensor, sf_w: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The weight [N, K] of one expert and its bias [N], in float64."""
    wide = w[expert].double() if sf_w is None else dequantize_blocks(w[expert], sf_w[expert], torch.float64)
    return wide, None if bias is None else bias[expert].double()


def linear(a: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    """[M, K], [N, K], [N] -> [M, N]."""
    d = a @ w.T
    return d if bias is None else d + bias
