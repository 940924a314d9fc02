"""FlashInfer's MLA and merging on moela: argument order and conventions of flashinfer-ai/flashinfer.

Conventions: tokens of all requests in one dimension, [nnz, H, D], with offsets; pages likewise; the cache in
two tensors; lse has base 2.
"""

import math
import sys
import types

import moela
import torch
from torch import Tensor

LN2 = math.log(2)


def merge_state(v_a: Tensor, s_a: Tensor, v_b: Tensor, s_b: Tensor) -> tuple[Tensor, Tensor]:
    v, s = moela.merge_states(v_a, s_a * LN2, v_b, s_b * LN2)
    return v, s / LN2


def merge_state_in_place(
    v: Tensor, s: Tensor, v_other: Tensor, s_other: Tensor, mask: Tensor | None = None
) -> None:
    """mask [nnz]: which rows to merge."""
    merged = merge_state(v, s, v_other, s_other)
    for old, new in zip((v, s), merged, strict=True):
        rows = torch.ones_like(old) if mask is None else mask.view(-1, *[1] * (old.dim() - 1))
        old.copy_(torch.where(rows.bool(), new, old))


def merge_states(v: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """v [nnz, states, H, D], s [nnz, states, H]."""
    merged = v[:, 0], s[:, 0]
    for i in range(1, v.size(1)):
        merged = merge_state(*merged, v[:, i], s[:, i])
    return merged


def get_seq_lens(kv_indptr: Tensor, kv_last_page_len: Tensor, page_size: int) -> Tensor:
    return ((kv_indptr.diff() - 1).clamp(min=0) * page_size + kv_last_page_len).int()


def get_batch_indices_positions(append_indptr: Tensor, seq_lens: Tensor, nnz: int) -> tuple[Tensor, Tensor]:
    """Of each appended token: its request, and its position, the last ones of the request."""
    lengths = append_indptr.diff()
    request = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths, output_size=nnz)
    token = torch.arange(nnz, device=lengths.device)
    return request.int(), (token - append_indptr[request + 1] + seq_lens[request]).int()


def append_paged_mla_kv_cache(
    append_ckv: Tensor,
    append_kpe: Tensor,
    batch_indices: Tensor,
    positions: Tensor,
    ckv_cache: Tensor,
    kpe_cache: Tensor,
    kv_indices: Tensor,
    kv_indptr: Tensor,
    kv_last_page_len: Tensor,
) -> None:
    """Each of the two caches has rows of one part."""
    page_size = ckv_cache.size(1)
    page = kv_indices[kv_indptr[batch_indices] + positions // page_size]
    slots = page * page_size + positions % page_size
    for rows, cache in ((append_ckv, ckv_cache), (append_kpe, kpe_cache)):
        moela.mla_cache_write(rows, rows[:, :0], cache, slots)


class BatchMLAPagedAttentionWrapper:
    """plan() for the lengths of a step, then run() per layer."""

    def __init__(self, float_workspace_buffer: Tensor, *args: object, **kwargs: object):
        pass

    def plan(
        self,
        qo_indptr: Tensor,
        kv_indptr: Tensor,
        kv_indices: Tensor,
        kv_len_arr: Tensor,
        num_heads: int,
        head_dim_ckv: int,
        head_dim_kpe: int,
        page_size: int,
        causal: bool,
        sm_scale: float,
        q_data_type: torch.dtype,
        kv_data_type: torch.dtype,
    ) -> None:
        self.first_row, self.num_rows = qo_indptr[:-1], qo_indptr.diff()
        kv_indptr = kv_indptr[: len(qo_indptr)]  # FlashInfer reads no more of it either
        num_pages = kv_indptr.diff()
        block = torch.arange(int(num_pages.amax()) if len(num_pages) else 0, device=kv_indices.device)
        is_block = block < num_pages[:, None]  # [B, blocks]
        self.block_table = torch.full(is_block.shape, -1, dtype=torch.int32, device=kv_indices.device)
        self.block_table[is_block] = kv_indices[(kv_indptr[:-1, None] + block)[is_block]]
        self.seqlens, self.sm_scale, self.causal = kv_len_arr, sm_scale, causal

    def run(
        self,
        q_nope: Tensor,
        q_pe: Tensor,
        ckv_cache: Tensor,
        kpe_cache: Tensor,
        out: Tensor | None = None,
        lse: Tensor | None = None,
        return_lse: bool = False,
        return_lse_base_on_e: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Requests with as many query rows are one call."""
        q, cache = torch.cat([q_nope, q_pe], -1), torch.cat([ckv_cache, kpe_cache], -1)
        out = torch.empty_like(q_nope) if out is None else out
        lse = q.new_empty(q.shape[:2], dtype=torch.float32) if lse is None else lse
        for length in self.num_rows.unique().tolist():
            requests = (self.num_rows == length).nonzero().flatten()
            rows = self.first_row[requests, None] + torch.arange(length, device=q.device)  # [B, length]
            out[rows], natural = moela.mla_decode(
                q[rows],
                cache,
                self.block_table[requests],
                self.seqlens[requests],
                sm_scale=self.sm_scale,
                v_dim=q_nope.size(-1),
                causal=self.causal,
            )
            lse[rows] = natural if return_lse_base_on_e else natural / LN2
        return (out, lse) if return_lse else out


def _module(name: str, **members: object) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(members)
    sys.modules[name] = module
    return module


if __name__ == "flashinfer":  # found as FlashInfer, not loaded by path: its tests import from these
    mla = _module("flashinfer.mla", BatchMLAPagedAttentionWrapper=BatchMLAPagedAttentionWrapper)
    generators = {f"gen_{name}_module": None for name in ("batch_mla", "batch_prefill", "single_prefill")}
    jit = _module(
        "flashinfer.jit", build_jit_specs=None, attention=_module("flashinfer.jit.attention", **generators)
    )
    utils = _module(
        "flashinfer.utils",
        has_flashinfer_jit_cache=lambda: True,
        is_sm90a_supported=lambda device: False,
        is_sm100a_supported=lambda device: False,
        is_sm110a_supported=lambda device: False,
    )
    _module("tests.test_helpers.test_helpers", clear_cuda_cache=lambda device: None)
