"""The definitions in plain torch: the oracle of every test, and the fallback on every device."""

from moela.reference.ep_combine import ep_combine
from moela.reference.ep_dispatch import ep_dispatch
from moela.reference.ep_plan import ep_plan
from moela.reference.fp8_gemm import fp8_gemm
from moela.reference.fused_experts import fused_experts
from moela.reference.grouped_fp8_gemm import grouped_fp8_gemm
from moela.reference.grouped_fp8_gemm_masked import grouped_fp8_gemm_masked
from moela.reference.grouped_gemm import grouped_gemm
from moela.reference.grouped_gemm_wgrad import grouped_gemm_wgrad
from moela.reference.indexer_cache_write import indexer_cache_write
from moela.reference.indexer_logits import indexer_logits
from moela.reference.indexer_logits_paged import indexer_logits_paged
from moela.reference.indexer_topk import indexer_topk
from moela.reference.merge_states import merge_states
from moela.reference.mla_cache_write import mla_cache_write
from moela.reference.mla_decode import mla_decode
from moela.reference.mla_norm_rope_cache_write import mla_norm_rope_cache_write
from moela.reference.mla_prefill import mla_prefill
from moela.reference.mla_prefill_backward import mla_prefill_backward
from moela.reference.mla_schedule import mla_schedule
from moela.reference.mla_sparse import mla_sparse
from moela.reference.moe_permute import moe_permute
from moela.reference.moe_topk import moe_topk
from moela.reference.moe_unpermute import moe_unpermute
from moela.reference.per_block_dequant_fp8 import per_block_dequant_fp8
from moela.reference.per_block_quant_fp8 import per_block_quant_fp8
from moela.reference.per_token_group_quant_fp8 import per_token_group_quant_fp8
from moela.reference.silu_and_mul import silu_and_mul
from moela.reference.silu_and_mul_quant_fp8 import silu_and_mul_quant_fp8

__all__ = [
    "ep_combine",
    "ep_dispatch",
    "ep_plan",
    "fp8_gemm",
    "fused_experts",
    "grouped_fp8_gemm",
    "grouped_fp8_gemm_masked",
    "grouped_gemm",
    "grouped_gemm_wgrad",
    "indexer_cache_write",
    "indexer_logits",
    "indexer_logits_paged",
    "indexer_topk",
    "merge_states",
    "mla_cache_write",
    "mla_decode",
    "mla_norm_rope_cache_write",
    "mla_prefill",
    "mla_prefill_backward",
    "mla_schedule",
    "mla_sparse",
    "moe_permute",
    "moe_topk",
    "moe_unpermute",
    "per_block_dequant_fp8",
    "per_block_quant_fp8",
    "per_token_group_quant_fp8",
    "silu_and_mul",
    "silu_and_mul_quant_fp8",
]
