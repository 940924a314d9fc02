"""Compile what every Triton launch() launches on a target, without a GPU; print facts of the code as JSON.

    python tests/sass/aot.py sm_90

A process of its own, because Triton reads TRITON_INTERPRET once. launch() runs with tensors in host memory
and a driver that only names the target; a hook takes the signature, the constants and the alignments that
Triton derived from the arguments and stops the launch. So what is compiled is what would run, not a copy of
it kept here.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import machine_code
import torch
import triton
from moela.kernels import (
    _fp8,
    _rest,
    fp8_gemm,
    fused_experts,
    grouped_fp8_gemm,
    grouped_fp8_gemm_masked,
    grouped_gemm,
    grouped_gemm_wgrad,
    indexer_cache_write,
    indexer_logits,
    indexer_logits_paged,
    indexer_topk,
    merge_states,
    mla_cache_write,
    mla_decode,
    mla_norm_rope_cache_write,
    mla_prefill,
    mla_prefill_backward,
    mla_schedule,
    mla_sparse,
    moe_permute,
    moe_topk,
    moe_unpermute,
    per_block_dequant_fp8,
    per_block_quant_fp8,
    per_token_group_quant_fp8,
    silu_and_mul,
    silu_and_mul_quant_fp8,
)
from moela.reference import _mla_cache
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

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


def states(dtype: torch.dtype, D=512) -> Launch:
    out, lse = torch.empty(100, 16, D, dtype=dtype), torch.empty(100, 16)
    return merge_states.launch, (out, lse, out, lse), {"out": (out.clone(), lse.clone())}


def cache_write(x: torch.dtype, cache: torch.dtype, ue8m0=False, slots=torch.int64) -> Launch:
    L, R = 512, 64
    row = _mla_cache.row_size(L, R, cache)
    args = (torch.empty(100, L, dtype=x), torch.empty(100, R, dtype=x), torch.empty(4, 64, row).to(cache))
    return mla_cache_write.launch, (*args, torch.zeros(100, dtype=slots), ue8m0), {}


def prefill(dtype: torch.dtype, D=192, Dv=128, causal=True, is_backward=False) -> Launch:
    T, H, B = 1000, 16, 3
    q, k = (torch.empty(T, H, D, dtype=dtype) for _ in range(2))
    v, out, dout = (torch.empty(T, H, Dv, dtype=dtype) for _ in range(3))
    lse, offsets = torch.empty(T, H), torch.empty(B + 1, dtype=torch.int32)
    options = {"sm_scale": 0.1, "causal": causal}
    if not is_backward:
        return mla_prefill.launch, (q, k, v, offsets, offsets), options | {"out": (out, lse)}
    args = (dout, lse, q, k, v, out, lse, offsets, offsets)
    return mla_prefill_backward.launch, args, options | {"out": (q, k, v)}


def norm_rope_cache_write(x: torch.dtype, cache: torch.dtype, L=512, R=64, interleaved=True) -> Launch:
    cos = torch.empty(100, R // 2) if R else None
    args = (
        torch.empty(100, L + R, dtype=x),
        torch.empty(L, dtype=x),
        cos,
        cos,
        torch.empty(4, 64, _mla_cache.row_size(L, R, cache)).to(cache),
        torch.zeros(100, dtype=torch.int64),
    )
    return mla_norm_rope_cache_write.launch, args, {"eps": 1e-6, "interleaved": interleaved}


def decode(
    q: torch.dtype, cache: torch.dtype, H=16, s_q=1, L=512, R=64, is_paged=True, ragged=False, invariant=False
) -> Launch:
    row = _mla_cache.row_size(L, R, cache)
    tokens = (4 * s_q,) if ragged else (4, s_q)
    args = (
        torch.empty(*tokens, H, L + R, dtype=q),
        torch.empty(16, 64, row).to(cache),
        torch.zeros(4, 9, dtype=torch.int32) if is_paged else None,
        torch.zeros(4, dtype=torch.int32),
    )
    kwargs = {"sm_scale": 0.1, "v_dim": L, "batch_invariant": invariant}
    kwargs["cu_seqlens_q"] = torch.zeros(5, dtype=torch.int32) if ragged else None
    out = (torch.empty(*tokens, H, L, dtype=q), torch.empty(*tokens, H))
    return mla_decode.launch, args, kwargs | {"out": out}


def schedule(num_parts: int, batch_invariant: bool) -> Launch:
    kwargs = {"rows": 128, "num_parts": num_parts, "batch_invariant": batch_invariant}
    out = (torch.zeros(num_parts + 103, 4, dtype=torch.int32),)
    return mla_schedule.launch, (torch.zeros(100, dtype=torch.int32),), kwargs | {"out": out}


def indexer(H: int, D=128, T=100) -> Launch:
    S, ranges = 4096, torch.zeros(T, dtype=torch.int32)
    args = (torch.empty(T, H, D).to(FP8), torch.empty(S, D).to(FP8), torch.empty(S), torch.empty(T, H))
    return indexer_logits.launch, (*args, ranges, ranges), {"out": (torch.empty(T, S),)}


def indexer_pages(H: int, D=128, s_q=2) -> Launch:
    B, S = 4, 576
    args = (
        torch.empty(B, s_q, H, D).to(FP8),
        torch.empty(16, 64, D + 4).to(torch.uint8),
        torch.empty(B, s_q, H),
        torch.zeros(B, 9, dtype=torch.int32),
        torch.zeros(B, dtype=torch.int32),
    )
    return indexer_logits_paged.launch, args, {"max_seqlen": S, "out": (torch.empty(B, s_q, S),)}


def indexer_write(x: torch.dtype, D=128, ue8m0=False) -> Launch:
    args = (torch.empty(100, D, dtype=x), torch.empty(4, 64, D + 4).to(torch.uint8))
    return indexer_cache_write.launch, (*args, torch.zeros(100, dtype=torch.int64), ue8m0), {}


def largest(**kwargs: Any) -> Launch:
    out = (torch.empty(4, 2, 2048, dtype=torch.int32),)
    return indexer_topk.launch, (torch.empty(4, 2, 131072), 2048), kwargs | {"out": out}


def sparse(q: torch.dtype, cache: torch.dtype, L=512, R=64, sink=True, length=True) -> Launch:
    row = _mla_cache.row_size(L, R, cache)
    args = (
        torch.empty(4, 16, L + R, dtype=q),
        torch.empty(16, 64, row).to(cache),
        torch.zeros(4, 2048, dtype=torch.int32),
    )
    kwargs = {
        "sm_scale": 0.1,
        "v_dim": L,
        "attn_sink": torch.empty(16) if sink else None,
        "topk_length": torch.zeros(4, dtype=torch.int32) if length else None,
        "out": (torch.empty(4, 16, L, dtype=q), torch.empty(4, 16)),
    }
    return mla_sparse.launch, args, kwargs


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
    "indexer_logits-e4m3": lambda: indexer(64),
    "indexer_logits-e4m3-odd": lambda: indexer(5, D=37),
    "indexer_logits_paged-e4m3": lambda: indexer_pages(64),
    "indexer_logits_paged-e4m3-32": lambda: indexer_pages(32, s_q=1),
    "indexer_cache_write-bf16-to_e4m3": lambda: indexer_write(BF16),
    "indexer_cache_write-f32-ue8m0-to_e4m3": lambda: indexer_write(F32, D=64, ue8m0=True),
    "indexer_topk-f32": lambda: largest(),
    "indexer_topk-f32-slots": lambda: largest(
        ks=torch.zeros(4, 2, dtype=torch.int32),
        ke=torch.zeros(4, 2, dtype=torch.int32),
        block_table=torch.zeros(9, 2048, dtype=torch.int32),
        page_size=64,
        request_ids=torch.zeros(4, 2, dtype=torch.int32),
    ),
    "merge_states-bf16": lambda: states(BF16),
    "merge_states-f32-narrow": lambda: states(F32, D=37),
    "mla_cache_write-bf16": lambda: cache_write(BF16, BF16),
    "mla_cache_write-f32-f16": lambda: cache_write(F32, F16, slots=torch.int32),
    "mla_cache_write-bf16-to_e4m3": lambda: cache_write(BF16, torch.uint8),
    "mla_norm_rope_cache_write-bf16": lambda: norm_rope_cache_write(BF16, BF16),
    "mla_norm_rope_cache_write-bf16-to_e4m3": lambda: norm_rope_cache_write(BF16, torch.uint8),
    "mla_norm_rope_cache_write-f32-halves": lambda: norm_rope_cache_write(F32, F16, 300, interleaved=False),
    "mla_norm_rope_cache_write-f16-plain": lambda: norm_rope_cache_write(F16, F16, 1, 0),
    "mla_decode-bf16": lambda: decode(BF16, BF16),
    "mla_decode-f16-dense": lambda: decode(F16, F16, is_paged=False),
    "mla_decode-bf16-bytes": lambda: decode(BF16, torch.uint8),
    "mla_decode-bf16-64_heads": lambda: decode(BF16, BF16, H=64),
    "mla_decode-bf16-128_heads-2": lambda: decode(BF16, BF16, H=128, s_q=2, invariant=True),
    "mla_decode-bf16-ragged": lambda: decode(BF16, BF16, s_q=2, ragged=True),
    "mla_decode-bf16-bytes-64_heads-2": lambda: decode(BF16, torch.uint8, H=64, s_q=2),
    "mla_decode-f16-bytes": lambda: decode(F16, torch.uint8),
    "mla_decode-f32-256": lambda: decode(F32, F32, L=256, R=0),
    "mla_schedule-132": lambda: schedule(132, batch_invariant=False),
    "mla_schedule-1024-invariant": lambda: schedule(1024, batch_invariant=True),
    "mla_prefill-bf16": lambda: prefill(BF16),
    "mla_prefill-f16-256-all": lambda: prefill(F16, 256, 256, causal=False),
    "mla_prefill-f32": lambda: prefill(F32),
    "mla_prefill-f32-256": lambda: prefill(F32, 256, 256),
    "mla_prefill_backward-bf16": lambda: prefill(BF16, is_backward=True),
    "mla_prefill_backward-f16-256-all": lambda: prefill(F16, 256, 256, causal=False, is_backward=True),
    "mla_prefill_backward-f32": lambda: prefill(F32, is_backward=True),
    "mla_prefill_backward-f32-256": lambda: prefill(F32, 256, 256, is_backward=True),
    "mla_sparse-bf16": lambda: sparse(BF16, BF16),
    "mla_sparse-f16-plain": lambda: sparse(F16, F16, sink=False, length=False),
    "mla_sparse-bf16-bytes": lambda: sparse(BF16, torch.uint8),
    "mla_sparse-f32-256": lambda: sparse(F32, F32, L=256, R=0),
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


def gpu_target(name: str) -> GPUTarget:
    return GPUTarget("cuda", int(name[3:]), 32) if name.startswith("sm_") else GPUTarget("hip", name, 64)


def moela_target(name: str) -> _fp8.Target:
    return _fp8.cuda_target(int(name[3:]), 100) if name.startswith("sm_") else _fp8.hip_target(name, 100)


class NoDevice:
    """What a launch asks of Triton's driver before it compiles."""

    def __init__(self, target: GPUTarget):
        self.target = target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target


def what_is_launched(launch: Launch) -> dict[str, dict[str, Any]]:
    """The arguments of triton.compile for the kernels that `launch` launches, by their names."""
    seen = {}

    def hook(*, fn, compile, **_):
        source = ASTSource(fn.jit_function, compile["signature"], compile["constants"], compile["configs"][0])
        options = {k: compile[k] for k in ("num_warps", "num_ctas", "num_stages", "enable_fp_fusion")}
        name = fn.jit_function.__name__.strip("_").removesuffix("_kernel")
        seen[name] = {"src": source, "options": options}
        return True  # stop here

    knobs.runtime.jit_cache_hook = hook
    function, args, kwargs = launch
    function(*args, **kwargs)
    return seen


def facts(compilation: dict[str, Any], target: GPUTarget) -> dict[str, Any]:
    started = time.perf_counter()
    kernel = triton.compile(target=target, **compilation)
    result = {
        "num_warps": kernel.metadata.num_warps,
        "num_stages": compilation["options"]["num_stages"],
        "shared": kernel.metadata.shared,
        "uses_descriptors": any(
            str(t).startswith("tensordesc") for t in compilation["src"].signature.values()
        ),
    }
    if target.backend == "cuda":
        result |= machine_code.of_cubin(kernel.asm["cubin"], kernel.asm["ptx"])
    else:
        result |= machine_code.of_amdgcn(kernel.asm["amdgcn"])
    return result | {"seconds": round(time.perf_counter() - started, 2)}


def main(name: str, *only: str) -> None:
    target = gpu_target(name)
    triton.runtime.driver.set_active(NoDevice(target))
    _fp8.target_of = lambda device: moela_target(name)
    result = {}
    for variant, make in VARIANTS.items():
        if only and variant not in only:
            continue
        try:
            kernels = what_is_launched(make())
            for kernel, compilation in kernels.items():
                label = variant if len(kernels) == 1 else f"{variant}-{kernel}"
                result[label] = facts(compilation, target)
        except Exception as error:
            result[variant] = {"error": f"{type(error).__name__}: {error}"[-2000:]}
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
