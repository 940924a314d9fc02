"""vLLM's attention operators on moela: argument order and conventions of vllm-project/vllm, vllm._custom_ops.

Conventions: results are written to tensors of the caller; lse is [H, T], natural, and either infinity says
that nothing was attended to.
"""

import sys
import types

import moela
import torch
from torch import Tensor


def concat_and_cache_mla(
    kv_c: Tensor,
    k_pe: Tensor,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    kv_cache_dtype: str,
    scale: Tensor,
) -> None:
    """kv_cache_dtype "auto": a cache of kv_c's dtype; "fp8_ds_mla": rows of bytes with scale factors."""
    if kv_cache_dtype not in ("auto", "fp8_ds_mla"):
        raise NotImplementedError(f"kv_cache_dtype {kv_cache_dtype}: one scale factor per tensor")
    moela.mla_cache_write(kv_c, k_pe, kv_cache, slot_mapping)


def merge_attn_states(
    output: Tensor,
    prefix_output: Tensor,
    prefix_lse: Tensor,
    suffix_output: Tensor,
    suffix_lse: Tensor,
    output_lse: Tensor | None = None,
) -> None:
    """Outputs [T, H, D]."""
    lse_a, lse_b = (torch.where(t == torch.inf, -torch.inf, t).T for t in (prefix_lse, suffix_lse))
    out, lse = moela.merge_states(prefix_output, lse_a, suffix_output, lse_b)
    output.copy_(out)
    if output_lse is not None:
        output_lse.copy_(lse.T)


def mla_decode_kvcache_cpu(
    out: Tensor,
    query: Tensor,
    kv_cache: Tensor,
    scale: float,
    block_tables: Tensor,
    seq_lens: Tensor,
) -> None:
    """query [B, H, D], out [B, H, v]: one new token each."""
    result, _ = moela.mla_decode(
        query[:, None], kv_cache, block_tables, seq_lens, sm_scale=scale, v_dim=out.size(-1)
    )
    out.copy_(result[:, 0])


class Platform:
    """What vLLM's tests ask before they run: they take this for a CPU."""

    def is_cpu(self) -> bool:
        return True

    def is_cuda(self) -> bool:
        return False


def _module(name: str, **members: object) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(members)
    sys.modules[name] = module
    return module


if __name__ == "vllm":  # found as vLLM, not loaded by path: its tests import from these
    _custom_ops = _module(
        "vllm._custom_ops",
        concat_and_cache_mla=concat_and_cache_mla,
        merge_attn_states=merge_attn_states,
        mla_decode_kvcache_cpu=mla_decode_kvcache_cpu,
    )
    platforms = _module("vllm.platforms", current_platform=Platform())
