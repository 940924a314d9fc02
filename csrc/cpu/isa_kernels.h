// The kernels of one instruction set, which the including isa_<name>.cpp has chosen by MOELA_SIMD_<NAME>.
#pragma once

#include "cpu/fused_experts_kernel.h"
#include "cpu/gather_rows_kernel.h"
#include "cpu/gemm_kernel.h"
#include "cpu/grouped_gemm_wgrad_kernel.h"
#include "cpu/indexer_cache_write_kernel.h"
#include "cpu/indexer_logits_kernel.h"
#include "cpu/indexer_topk_kernel.h"
#include "cpu/isa.h"
#include "cpu/merge_states_kernel.h"
#include "cpu/mla_attend_kernel.h"
#include "cpu/mla_cache_write_kernel.h"
#include "cpu/mla_norm_rope_cache_write_kernel.h"
#include "cpu/mla_prefill_backward_kernel.h"
#include "cpu/mla_prefill_kernel.h"
#include "cpu/moe_permute_kernel.h"
#include "cpu/moe_topk_kernel.h"
#include "cpu/moe_unpermute_kernel.h"
#include "cpu/per_block_dequant_fp8_kernel.h"
#include "cpu/per_block_quant_fp8_kernel.h"
#include "cpu/per_token_group_quant_fp8_kernel.h"
#include "cpu/probe_kernel.h"
#include "cpu/silu_and_mul_kernel.h"
#include "cpu/silu_and_mul_quant_fp8_kernel.h"

namespace {

constexpr moela::cpu::Kernels kernels_of(const char* isa) {
  return {
      .isa = isa,
      .gather_rows = gather_rows,
      .gemm = kGemmKernels,
      .grouped_gemm_wgrad = kGroupedGemmWgradKernels,
      .fused_experts = kFusedExpertsKernels,
      .indexer_cache_write = indexer_cache_write,
      .indexer_logits = kIndexerLogitsKernels,
      .indexer_topk = indexer_topk,
      .merge_states = merge_states,
      .mla_attend = kMlaKernels,
      .mla_cache_write = mla_cache_write,
      .mla_norm_rope_cache_write = mla_norm_rope_cache_write,
      .mla_prefill = kMlaPrefillKernel,
      .mla_prefill_backward = kMlaPrefillBackwardKernel,
      .moe_permute = moe_permute,
      .moe_topk = moe_topk,
      .moe_unpermute = moe_unpermute,
      .per_block_dequant_fp8 = per_block_dequant_fp8,
      .per_block_quant_fp8 = per_block_quant_fp8,
      .per_token_group_quant_fp8 = per_token_group_quant_fp8,
      .silu_and_mul = silu_and_mul,
      .silu_and_mul_quant_fp8 = silu_and_mul_quant_fp8,
      .probe = kProbe,
  };
}

}  // namespace
