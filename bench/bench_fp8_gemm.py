"""fp8_gemm on the linear layers of a model, against what users multiply with today."""

import importlib.util
from collections.abc import Callable, Iterator

import moela
import torch
from moela.bench import ggml
from moela.bench.suite import Baseline, Bench, Inputs, Part, row_parts
from moela.reference.fp8_gemm import BLOCK, dequantize_rows
from moela.shapes import LinearShape
from torch import Tensor
from torch.nn.functional import linear

DTYPES = {"bf16": torch.bfloat16, "e4m3": torch.float8_e4m3fn}
# Rounding weights, activations and result to bfloat16 gives 0.3 %, Q8_0 on both sides up to 1 %.
LOSSY = 0.02


def activations(inputs: Inputs, dtype: torch.dtype) -> Tensor:
    """[M, K], dequantized ahead of the clock: to the benefit of the baseline."""
    a, sf_a = inputs["a"], inputs["sf_a"]
    return a.to(dtype) if sf_a is None else dequantize_rows(a, sf_a).to(dtype)


def dequantized(dtype: torch.dtype) -> Callable[[Inputs], Callable[[], Tensor]]:
    """Weights dequantized once; takes two or four times the memory of FP8."""

    def prepare(inputs: Inputs) -> Callable[[], Tensor]:
        a = activations(inputs, dtype)
        w = moela.per_block_dequant_fp8(inputs["b"], inputs["sf_b"], dtype)
        return lambda: linear(a, w)

    return prepare


def dequantize_then_linear(inputs: Inputs) -> Callable[[], Tensor]:
    """Weights kept in FP8, dequantized in every call: the same memory as moela."""
    a, b, sf_b = activations(inputs, torch.bfloat16), inputs["b"], inputs["sf_b"]
    N, K = b.shape
    if K % BLOCK:
        raise ValueError(f"expected K to be a multiple of {BLOCK}, got K={K}")

    def call() -> Tensor:
        sf = sf_b.bfloat16().repeat_interleave(BLOCK, 0)[:N]  # [N, K/128]
        w = b.bfloat16().view(N, -1, BLOCK) * sf.unsqueeze(-1)  # [N, K/128, 128]
        return linear(a, w.view(N, K))

    return call


def ggml_q8_0(inputs: Inputs) -> Callable[[], Tensor]:
    """Weights quantized again, to one float16 scale factor per 32 elements; activations float32."""
    w = moela.per_block_dequant_fp8(inputs["b"], inputs["sf_b"], torch.float32)
    return ggml.linear_q8_0(activations(inputs, torch.float32), w, torch.get_num_threads())


def deepgemm(inputs: Inputs) -> Callable[[], Tensor]:
    if inputs["sf_a"] is None:
        raise ValueError("multiplies e4m3 activations only; --activations e4m3")
    import deep_gemm

    d = inputs["a"].new_empty((inputs["a"].size(0), inputs["b"].size(0)), dtype=torch.bfloat16)

    def call() -> Tensor:
        deep_gemm.fp8_gemm_nt((inputs["a"], inputs["sf_a"]), (inputs["b"], inputs["sf_b"]), d)
        return d

    return call


def why_no_ggml(device: torch.device) -> str | None:
    return ggml.why_not() if device.type == "cpu" else "runs on cpu tensors only"


def why_no_deepgemm(device: torch.device) -> str | None:
    if device.type != "cuda":
        return "runs on cuda tensors only"
    return None if importlib.util.find_spec("deep_gemm") else "deep_gemm is not installed"


def dims(layer: LinearShape, tokens: int, dtype: str) -> dict[str, object]:
    return {"M": tokens, "N": layer.N, "K": layer.K, "a_dtype": DTYPES[dtype]}


def parts(inputs: Inputs) -> Iterator[Part]:
    """Columns of d."""
    for rows, sf_rows in row_parts(*inputs["b"].shape):
        part = inputs | {"b": inputs["b"][rows], "sf_b": inputs["sf_b"][sf_rows]}
        yield part, lambda outputs, rows=rows: (outputs[0][:, rows],)


BENCH = Bench(
    op="fp8_gemm",
    dtypes=tuple(DTYPES),
    has_tokens=True,
    dims=dims,
    item_bytes=lambda dtype: {"a_bytes": DTYPES[dtype].itemsize},
    parts=parts,
    baselines=(
        Baseline("torch", "weights dequantized to bfloat16 ahead", dequantized(torch.bfloat16), LOSSY),
        Baseline("torch-fp32", "weights dequantized to float32 ahead", dequantized(torch.float32), LOSSY),
        Baseline("torch-dequant", "dequantizes to bfloat16 in every call", dequantize_then_linear, LOSSY),
        Baseline("ggml-q8_0", "llama.cpp, weights quantized again to Q8_0", ggml_q8_0, LOSSY, why_no_ggml),
        Baseline("deepgemm", "DeepGEMM's fp8_gemm_nt", deepgemm, LOSSY, why_no_deepgemm),
    ),
)


def bench_fp8_gemm(benchmark, contestant):
    benchmark(contestant)
