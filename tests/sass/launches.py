"""Launches of the Triton kernels that aot.py compiles, by variant: GEMMs, experts, routers, casts."""

from collections.abc import Callable
from typing import Any

import torch
from moela.kernels import (
    _rest,
    ep_plan,
    fp8_gemm,
    fused_experts,
    grouped_fp8_gemm,
    grouped_fp8_gemm_masked,
    grouped_gemm,
    grouped_gemm_wgrad,
    moe_permute,
    moe_topk,
    moe_unpermute,
    per_block_dequant_fp8,
    per_block_quant_fp8,
    per_token_group_quant_fp8,
    silu_and_mul,
    silu_and_mul_quant_fp8,
)

FP8, E8M0, BF16, F16, F32 = (
    torch.float8_e4m3fn, torch.float8_e8m0fnu, torch.bfloat16, torch.float16, torch.float32
)  # fmt: skip
Launch = tuple[Callable[..., None], tuple, dict[str, Any]]


def gemm(a: torch.dtype, sf_b=F32, bias=None, out_dtype=BF16, M=100, N=7168, K=2048, row_pad=0) -> Launch:
    """Arguments of fp8_gemm.launch. row_pad: elements between rows of a; 8 makes them unfit for TMA.

    An odd K is a row that may begin at any byte.
    """
    blocks = -(-K // 128)
    args = (
        torch.empty(M, K + row_pad).to(a)[:, :K],
        torch.empty(M, blocks) if a == FP8 else None,
        torch.empty(N, K).to(FP8),
        torch.empty(-(-N // 128), blocks).to(sf_b),
    )
    kwargs = {"bias": torch.empty(N, dtype=bias) if bias else None, "out_dtype": out_dtype}
    return fp8_gemm.launch, args, kwargs | {"out": (torch.empty(M, N, dtype=out_dtype),)}


def experts(a: torch.dtype, out_dtype=BF16, masked=False, K=2048, row_pad=0) -> Launch:
    """Arguments of grouped_fp8_gemm.launch or of its masked form; row_pad as in gemm()."""
    E, M, N, blocks = 5, 100, 7168, -(-K // 128)
    batch = (E, M) if masked else (M,)
    args = (
        torch.empty(*batch, K + row_pad).to(a)[..., :K],
        torch.empty(*batch, blocks) if a == FP8 else None,
        torch.empty(E, N, K).to(FP8),
        torch.empty(E, -(-N // 128), blocks),
        torch.empty(E + (not masked), dtype=torch.int32),
    )
    launch = grouped_fp8_gemm_masked.launch if masked else grouped_fp8_gemm.launch
    out = (torch.empty(*batch, N, dtype=out_dtype),)
    return launch, args, {"out_dtype": out_dtype, "out": out}


def plain_experts(dtype: torch.dtype, n_contiguous=False, K=2048, row_pad=0) -> Launch:
    E, M, N = 5, 100, 2880
    b = torch.empty(E, K, N, dtype=dtype).mT if n_contiguous else torch.empty(E, N, K, dtype=dtype)
    a = torch.empty(M, K + row_pad, dtype=dtype)[:, :K]
    args = (a, b, torch.empty(E + 1, dtype=torch.int32))
    return grouped_gemm.launch, args, {"out": (torch.empty(M, N, dtype=dtype),)}


def weight_gradient(dtype: torch.dtype, K=2048) -> Launch:
    E, M, N = 5, 100, 2880
    args = (
        torch.empty(M, N, dtype=dtype),
        torch.empty(M, K, dtype=dtype),
        torch.empty(E + 1, dtype=torch.int32),
    )
    return grouped_gemm_wgrad.launch, args, {"out": (torch.empty(E, N, K, dtype=dtype),)}


def rest(dtype: torch.dtype, has_begin: bool) -> Launch:
    """Of the rows that a grouped product leaves alone."""
    matrices = 1 if has_begin else 5
    bound = torch.empty(matrices, dtype=torch.int32)
    return (
        _rest.clear_rest,
        (torch.empty(matrices, 100, 7168, dtype=dtype), bound if has_begin else None, bound),
        {},
    )


def token_quant(dtype: torch.dtype, ue8m0: bool, group_size=128) -> Launch:
    x = torch.empty(100, 2048, dtype=dtype)
    out = (torch.empty(x.shape).to(FP8), torch.empty(100, -(-2048 // group_size)))
    return per_token_group_quant_fp8.launch, (x, group_size, ue8m0), {"out": out}


def block_quant(dtype: torch.dtype, ue8m0: bool) -> Launch:
    out = (torch.empty(512, 2048).to(FP8), torch.empty(4, 16))
    return per_block_quant_fp8.launch, (torch.empty(512, 2048, dtype=dtype), ue8m0), {"out": out}


def block_dequant(dtype: torch.dtype, sf: torch.dtype) -> Launch:
    args = (torch.empty(512, 2048).to(FP8), torch.empty(4, 16).to(sf), dtype)
    return per_block_dequant_fp8.launch, args, {"out": (torch.empty(512, 2048, dtype=dtype),)}


def activation(dtype: torch.dtype, limit=None, alpha=None) -> Launch:
    out = (torch.empty(100, 2048, dtype=dtype),)
    return silu_and_mul.launch, (torch.empty(100, 4096, dtype=dtype), limit, alpha), {"out": out}


def activation_quant(dtype: torch.dtype, ue8m0: bool, group_size=128, K=2048) -> Launch:
    out = (torch.empty(100, K).to(FP8), torch.empty(100, -(-K // group_size)))
    return (
        silu_and_mul_quant_fp8.launch,
        (torch.empty(100, 2 * K, dtype=dtype), 7.0, 1.702, group_size, ue8m0),
        {"out": out},
    )


def router(dtype: torch.dtype, E: int, topk: int, **kwargs: Any) -> Launch:
    out = (torch.empty(100, topk), torch.empty(100, topk, dtype=torch.int32))
    return moe_topk.launch, (torch.empty(100, E, dtype=dtype), topk), kwargs | {"out": out}


def ep(ids: torch.dtype, num_experts: int, num_ranks: int, topk=8) -> Launch:
    shapes = ((100 * min(topk, num_ranks),), (num_ranks,), (100, topk))
    out = tuple(torch.empty(shape, dtype=torch.int32) for shape in shapes)
    return ep_plan.launch, (torch.zeros(100, topk, dtype=ids), num_experts, num_ranks), {"out": out}


def permute(x: torch.dtype, ids: torch.dtype, H: int, num_experts: int, topk=8) -> Launch:
    out = (
        torch.empty(100 * topk, H).to(x),
        torch.empty(num_experts + 1, dtype=torch.int32),
        torch.empty(100, topk, dtype=torch.int32),
    )
    args = (torch.empty(100, H).to(x), torch.zeros(100, topk, dtype=ids), num_experts)
    return moe_permute.launch, args, {"out": out}


def unpermute(dtype: torch.dtype, has_weights: bool, H=7168, topk=8) -> Launch:
    args = (
        torch.empty(100 * topk, H, dtype=dtype),
        torch.empty(100, topk) if has_weights else None,
        torch.zeros(100, topk, dtype=torch.int32),
    )
    return moe_unpermute.launch, args, {"out": (torch.empty(100, H, dtype=dtype),)}


def sorted_ids(dtype: torch.dtype, topk: int) -> Launch:
    ids = torch.empty(100, topk, dtype=dtype)
    return fused_experts.sort_ids, (ids, torch.empty(100, topk), 256), {}


def widened(launch: Launch, dtype: torch.dtype) -> Launch:
    """A kernel into another type than its op gives: products are float32 until a bias is added."""
    function, args, kwargs = launch
    return function, args, kwargs | {"out": tuple(t.to(dtype) for t in kwargs["out"])}


def biased(dtype: torch.dtype, E: int) -> Launch:
    args = (torch.empty(100, 5760), torch.empty(E, 5760, dtype=dtype), torch.empty(E + 1, dtype=torch.int32))
    return fused_experts.add_bias, args, {}


VARIANTS: dict[str, Callable[[], Launch]] = {
    "fp8_gemm-e4m3": lambda: gemm(FP8),
    "fp8_gemm-e4m3-pointers": lambda: gemm(FP8, row_pad=8),
    "fp8_gemm-e4m3-odd": lambda: gemm(FP8, K=2047),
    "fp8_gemm-e4m3-e8m0-bias": lambda: gemm(FP8, E8M0, bias=BF16),
    "fp8_gemm-e4m3-K0": lambda: gemm(FP8, K=0),
    "fp8_gemm-bf16": lambda: gemm(BF16),
    "fp8_gemm-bf16-pointers": lambda: gemm(BF16, row_pad=4),
    "fp8_gemm-bf16-odd": lambda: gemm(BF16, K=2047),
    "fp8_gemm-bf16-e8m0-bias": lambda: gemm(BF16, E8M0, bias=F32),
    "fp8_gemm-f16": lambda: gemm(F16, out_dtype=F16),
    "fp8_gemm-bf16-narrow": lambda: gemm(BF16, N=64),
    "fp8_gemm-f32-odd": lambda: gemm(F32, out_dtype=F32, K=2047),
    "fp8_gemm-f32": lambda: gemm(F32, out_dtype=F32),
    # Its other kernels are those of the ops that it is made of; beside biases some give other types.
    "fused_experts-sort-i32": lambda: sorted_ids(torch.int32, 8),
    "fused_experts-sort-i64": lambda: sorted_ids(torch.int64, 6),
    "fused_experts-bias-bf16": lambda: biased(BF16, 128),
    "fused_experts-bias-f32-384": lambda: biased(F32, 384),
    "grouped_gemm-bf16-f32": lambda: widened(plain_experts(BF16), F32),
    "silu_and_mul-f32-bf16": lambda: widened(activation(F32), BF16),
    "moe_unpermute-f32-bf16": lambda: widened(unpermute(F32, has_weights=True), BF16),
    "grouped_fp8_gemm-bf16-f32": lambda: experts(BF16, out_dtype=F32),
    "grouped_fp8_gemm-e4m3": lambda: experts(FP8),
    "grouped_fp8_gemm-e4m3-pointers": lambda: experts(FP8, row_pad=8),
    "grouped_fp8_gemm-e4m3-odd": lambda: experts(FP8, K=2047),
    "grouped_fp8_gemm-bf16": lambda: experts(BF16),
    "grouped_fp8_gemm-f32": lambda: experts(F32, out_dtype=F32),
    "grouped_fp8_gemm_masked-e4m3": lambda: experts(FP8, masked=True),
    "grouped_fp8_gemm_masked-bf16": lambda: experts(BF16, masked=True),
    "grouped_gemm-bf16": lambda: plain_experts(BF16),
    "grouped_gemm-bf16-pointers": lambda: plain_experts(BF16, row_pad=4),
    "grouped_gemm-bf16-odd": lambda: plain_experts(BF16, K=2047),
    "grouped_gemm-bf16-transposed": lambda: plain_experts(BF16, n_contiguous=True),
    "grouped_gemm-f32": lambda: plain_experts(F32),
    "grouped_gemm_wgrad-bf16": lambda: weight_gradient(BF16),
    "grouped_gemm_wgrad-bf16-odd": lambda: weight_gradient(BF16, K=2047),
    "grouped_gemm_wgrad-f32": lambda: weight_gradient(F32),
    "clear_rest-bf16": lambda: rest(BF16, has_begin=True),
    "clear_rest-f32": lambda: rest(F32, has_begin=False),
    "per_token_group_quant_fp8-bf16": lambda: token_quant(BF16, ue8m0=False),
    "per_token_group_quant_fp8-f32-ue8m0": lambda: token_quant(F32, ue8m0=True),
    "moe_topk-bf16": lambda: router(BF16, 128, 8, renormalize=True),
    "moe_topk-f16-sqrtsoftplus": lambda: router(
        F16, 384, 6, bias=torch.empty(384), scoring="sqrtsoftplus", renormalize=True
    ),
    "moe_topk-f32-noaux_tc": lambda: router(
        F32,
        256,
        8,
        bias=torch.empty(256),
        scoring="sigmoid",
        num_groups=8,
        topk_groups=4,
        group_score="top2sum",
        renormalize=True,
        scaling=2.5,
    ),
    "moe_topk-f32-groups": lambda: router(F32, 160, 6, num_groups=8, topk_groups=3),
    "moe_topk-f32-1024": lambda: router(F32, 1024, 64, scoring="softmax"),
    "ep_plan-i64": lambda: ep(torch.int64, 256, 64),
    "ep_plan-i32-uneven": lambda: ep(torch.int32, 61, 7, topk=6),
    "moe_permute-bf16": lambda: permute(BF16, torch.int32, 7168, 256),
    "moe_permute-e4m3-i64-narrow": lambda: permute(FP8, torch.int64, 37, 8),
    "moe_permute-bf16-512": lambda: permute(BF16, torch.int32, 2880, 512),
    "moe_unpermute-bf16": lambda: unpermute(BF16, has_weights=True),
    "moe_unpermute-f16-plain": lambda: unpermute(F16, has_weights=False, H=2880),
    "moe_unpermute-f32-narrow": lambda: unpermute(F32, has_weights=True, H=37),
    "silu_and_mul-bf16": lambda: activation(BF16),
    "silu_and_mul-f16-gpt_oss": lambda: activation(F16, 7.0, 1.702),
    "silu_and_mul-f32": lambda: activation(F32),
    "silu_and_mul_quant_fp8-bf16": lambda: activation_quant(BF16, ue8m0=False),
    "silu_and_mul_quant_fp8-f32-ue8m0": lambda: activation_quant(F32, ue8m0=True),
    "silu_and_mul_quant_fp8-bf16-long": lambda: activation_quant(BF16, ue8m0=False, group_size=2048),
    "per_block_quant_fp8-bf16": lambda: block_quant(BF16, ue8m0=False),
    "per_block_quant_fp8-f32-ue8m0": lambda: block_quant(F32, ue8m0=True),
    "per_block_dequant_fp8-bf16": lambda: block_dequant(BF16, F32),
    "per_block_dequant_fp8-f32-e8m0": lambda: block_dequant(F32, E8M0),
}
