"""The ops. Importing this defines them under torch.ops.moela."""

from moela.ops._ep import DISTRIBUTED
from moela.ops._ep_out import ep_combine_out, ep_dispatch_out
from moela.ops._ep_split import ep_combine_recv, ep_combine_send, ep_dispatch_recv, ep_dispatch_send
from moela.ops._spec import SPECS, OpSpec
from moela.ops.ep_combine import ep_combine
from moela.ops.ep_dispatch import ep_dispatch
from moela.ops.ep_dispatch_dynamic import ep_dispatch_dynamic
from moela.ops.ep_plan import ep_plan, ep_plan_out
from moela.ops.fp8_gemm import fp8_gemm, fp8_gemm_out
from moela.ops.fused_experts import fused_experts, fused_experts_out
from moela.ops.grouped_fp8_gemm import grouped_fp8_gemm, grouped_fp8_gemm_out
from moela.ops.grouped_fp8_gemm_masked import grouped_fp8_gemm_masked, grouped_fp8_gemm_masked_out
from moela.ops.grouped_gemm import grouped_gemm, grouped_gemm_out
from moela.ops.grouped_gemm_wgrad import grouped_gemm_wgrad, grouped_gemm_wgrad_out
from moela.ops.indexer_cache_write import indexer_cache_write
from moela.ops.indexer_logits import indexer_logits, indexer_logits_out
from moela.ops.indexer_logits_paged import indexer_logits_paged, indexer_logits_paged_out
from moela.ops.indexer_topk import indexer_topk, indexer_topk_out
from moela.ops.merge_states import merge_states, merge_states_out
from moela.ops.mla_cache_write import mla_cache_write
from moela.ops.mla_decode import mla_decode, mla_decode_out
from moela.ops.mla_norm_rope_cache_write import mla_norm_rope_cache_write
from moela.ops.mla_prefill import mla_prefill, mla_prefill_out
from moela.ops.mla_prefill_backward import mla_prefill_backward, mla_prefill_backward_out
from moela.ops.mla_schedule import mla_schedule, mla_schedule_out
from moela.ops.mla_sparse import mla_sparse, mla_sparse_out
from moela.ops.moe_permute import moe_permute, moe_permute_out
from moela.ops.moe_topk import moe_topk, moe_topk_out
from moela.ops.moe_unpermute import moe_unpermute, moe_unpermute_out
from moela.ops.per_block_dequant_fp8 import per_block_dequant_fp8, per_block_dequant_fp8_out
from moela.ops.per_block_quant_fp8 import per_block_quant_fp8, per_block_quant_fp8_out
from moela.ops.per_token_group_quant_fp8 import per_token_group_quant_fp8, per_token_group_quant_fp8_out
from moela.ops.silu_and_mul import silu_and_mul, silu_and_mul_out
from moela.ops.silu_and_mul_quant_fp8 import silu_and_mul_quant_fp8, silu_and_mul_quant_fp8_out

__all__ = [
    "DISTRIBUTED",
    "SPECS",
    "OpSpec",
    "ep_combine",
    "ep_combine_out",
    "ep_combine_recv",
    "ep_combine_send",
    "ep_dispatch",
    "ep_dispatch_dynamic",
    "ep_dispatch_out",
    "ep_dispatch_recv",
    "ep_dispatch_send",
    "ep_plan",
    "ep_plan_out",
    "fp8_gemm",
    "fp8_gemm_out",
    "fused_experts",
    "fused_experts_out",
    "grouped_fp8_gemm",
    "grouped_fp8_gemm_masked",
    "grouped_fp8_gemm_masked_out",
    "grouped_fp8_gemm_out",
    "grouped_gemm",
    "grouped_gemm_out",
    "grouped_gemm_wgrad",
    "grouped_gemm_wgrad_out",
    "indexer_cache_write",
    "indexer_logits",
    "indexer_logits_out",
    "indexer_logits_paged",
    "indexer_logits_paged_out",
    "indexer_topk",
    "indexer_topk_out",
    "merge_states",
    "merge_states_out",
    "mla_cache_write",
    "mla_decode",
    "mla_decode_out",
    "mla_norm_rope_cache_write",
    "mla_prefill",
    "mla_prefill_backward",
    "mla_prefill_backward_out",
    "mla_prefill_out",
    "mla_schedule",
    "mla_schedule_out",
    "mla_sparse",
    "mla_sparse_out",
    "moe_permute",
    "moe_permute_out",
    "moe_topk",
    "moe_topk_out",
    "moe_unpermute",
    "moe_unpermute_out",
    "per_block_dequant_fp8",
    "per_block_dequant_fp8_out",
    "per_block_quant_fp8",
    "per_block_quant_fp8_out",
    "per_token_group_quant_fp8",
    "per_token_group_quant_fp8_out",
    "silu_and_mul",
    "silu_and_mul_out",
    "silu_and_mul_quant_fp8",
    "silu_and_mul_quant_fp8_out",
]
