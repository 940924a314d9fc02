"""fused_experts on the routed experts of a model, against what users compute them with today.

The activation is silu and there are no biases, for every model. Weights that torch's baselines multiply with
are dequantized ahead of the clock, to two or four times the memory of FP8, and x has their type.
"""

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import moela
import torch
from moela.bench import routing
from moela.bench.routing import Routed
from moela.bench.suite import Baseline, Bench, Inputs, Part, nothing_missing
from torch import Tensor
from torch.nn import Parameter
from torch.nn.functional import linear, silu
from torch.utils.weak import WeakTensorKeyDictionary

BF16, FP32, E4M3 = torch.bfloat16, torch.float32, torch.float8_e4m3fn
# By the weights: the types of x and of the weights, and how activations are quantized.
DTYPES = {
    "fp8": (BF16, E4M3, None),
    "fp8xfp8": (BF16, E4M3, "fp8"),
    "bf16": (BF16, BF16, None),
    "f32": (FP32, FP32, None),
}
LOSSY = 0.02  # rounding every intermediate to bfloat16 gives 0.5 %
# w13 of the inputs -> dtype -> (w13, w2): the baselines share their copies, as they are large.
_copies = WeakTensorKeyDictionary()


def dims(layer: Routed, tokens: int, dtype: str) -> dict[str, Any]:
    x_dtype, w_dtype, quantize_activations = DTYPES[dtype]
    return {
        "T": tokens,
        "H": layer.shape.hidden,
        "I": layer.shape.intermediate,
        "E": layer.num_experts,
        "topk": layer.topk,
        "topk_ids": layer.topk_ids(tokens),
        "x_dtype": x_dtype,
        "w_dtype": w_dtype,
        "quantize_activations": quantize_activations,
    }


def item_bytes(dtype: str) -> dict[str, float]:
    x_dtype, w_dtype, _ = DTYPES[dtype]
    sf_bytes = 4 / 128**2 if w_dtype == E4M3 else 0
    return {"x_bytes": x_dtype.itemsize, "w_bytes": w_dtype.itemsize + sf_bytes}


def parts(inputs: Inputs) -> Iterator[Part]:
    """One: the bound dequantizes one expert at a time."""
    yield inputs, lambda outputs: outputs


def weights(inputs: Inputs, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """w13 and w2 in dtype."""
    copies = _copies.setdefault(inputs["w13"], {})
    if dtype not in copies:
        copies[dtype] = tuple(
            moela.per_block_dequant_fp8(inputs[w], inputs[f"sf_{w}"], dtype)
            if inputs[w].dtype == E4M3
            else inputs[w].to(dtype)
            for w in ("w13", "w2")
        )
    return copies[dtype]


# What each of these prepares is a call of (x, topk_ids, topk_weights).
Experts = Callable[[Tensor, Tensor, Tensor], Tensor]


def torch_loop(w13: Tensor, w2: Tensor) -> Experts:
    """Expert by expert, as modeling files do."""

    def call(x: Tensor, topk_ids: Tensor, topk_weights: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for expert in topk_ids.unique().tolist():
            token, slot = (topk_ids == expert).nonzero(as_tuple=True)
            gate, up = linear(x[token], w13[expert]).chunk(2, -1)
            y = linear(silu(gate) * up, w2[expert]) * topk_weights[token, slot, None]
            out.index_add_(0, token, y.to(out.dtype))
        return out

    return call


def transformers(implementation: str) -> Callable[[Tensor, Tensor], Experts]:
    """The experts module of DeepSeek-V3: that of other models with silu and no biases is the same."""

    def make(w13: Tensor, w2: Tensor) -> Experts:
        from transformers import DeepseekV3Config
        from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Experts

        sizes = {
            "n_routed_experts": w2.size(0),
            "hidden_size": w2.size(1),
            "moe_intermediate_size": w2.size(2),
        }
        config = DeepseekV3Config(**sizes)
        config._experts_implementation = implementation
        with torch.device("meta"):  # its own weights would be another copy
            experts = DeepseekV3Experts(config)
        experts.gate_up_proj = Parameter(w13, requires_grad=False)
        experts.down_proj = Parameter(w2, requires_grad=False)
        return experts

    return make


def baseline(
    name: str, what: str, make: Callable[..., Experts], why_not: Callable, dtype: torch.dtype
) -> Baseline:
    def prepare(inputs: Inputs) -> Callable[[], Tensor]:
        if inputs["quantize_activations"]:
            raise ValueError("does not quantize activations")
        experts, x, ids = make(*weights(inputs, dtype)), inputs["x"].to(dtype), inputs["topk_ids"].long()
        return lambda: experts(x, ids, inputs["topk_weights"])

    is_fp32 = dtype == FP32
    full = name + "-fp32" * is_fp32
    return Baseline(full, f"{what}, {'float32' if is_fp32 else 'bfloat16'} weights", prepare, LOSSY, why_not)


def why_no_transformers(device: torch.device) -> str | None:
    return None if importlib.util.find_spec("transformers") else "transformers is not installed"


def vllm(inputs: Inputs) -> Callable[[], Tensor]:
    """Its Triton kernels; their FP8 form quantizes activations."""
    from vllm.model_executor.layers.fused_moe import fused_experts
    from vllm.model_executor.layers.fused_moe.config import fp8_w8a8_moe_quant_config

    x, w13, w2, topk_weights, topk_ids = (inputs[k] for k in ("x", "w13", "w2", "topk_weights", "topk_ids"))
    config = None
    if w13.dtype == E4M3:
        if not inputs["quantize_activations"]:
            raise ValueError("has no weight-only FP8; --weights fp8xfp8")
        sf = {"w1_scale": inputs["sf_w13"], "w2_scale": inputs["sf_w2"]}
        config = fp8_w8a8_moe_quant_config(**sf, block_shape=[128, 128])
    return lambda: fused_experts(x, w13, w2, topk_weights, topk_ids, quant_config=config)


def why_no_vllm(device: torch.device) -> str | None:
    if device.type != "cuda":
        return "runs on cuda tensors only"
    return None if importlib.util.find_spec("vllm") else "vllm is not installed"


KINDS = (
    ("torch-loop", "expert by expert in plain torch", torch_loop, nothing_missing),
    ("transformers-eager", "transformers' own loop", transformers("eager"), why_no_transformers),
    ("transformers-grouped", "transformers by grouped_mm", transformers("grouped_mm"), why_no_transformers),
)

BENCH = Bench(
    op="fused_experts",
    dtypes=tuple(DTYPES),
    has_tokens=True,
    dims=dims,
    item_bytes=item_bytes,
    parts=parts,
    baselines=(
        *(baseline(*kind, dtype) for dtype in (BF16, FP32) for kind in KINDS),
        Baseline("vllm", "vLLM's fused_experts", vllm, LOSSY, why_no_vllm),
    ),
    layers=routing.experts,
    has_routing=True,
    dtype_option="weights",
)


def bench_fused_experts(benchmark, contestant):
    benchmark(contestant)
