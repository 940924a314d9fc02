// One set of kernels per instruction set, and which of them this process runs.
#pragma once

#include "cpu/fused_experts.h"
#include "cpu/gather_rows.h"
#include "cpu/gemm.h"
#include "cpu/indexer_cache_write.h"
#include "cpu/indexer_logits.h"
#include "cpu/indexer_topk.h"
#include "cpu/merge_states.h"
#include "cpu/mla_attend.h"
#include "cpu/mla_cache_write.h"
#include "cpu/mla_norm_rope_cache_write.h"
#include "cpu/mla_prefill.h"
#include "cpu/mla_prefill_backward.h"
#include "cpu/moe_permute.h"
#include "cpu/moe_topk.h"
#include "cpu/moe_unpermute.h"
#include "cpu/per_block_dequant_fp8.h"
#include "cpu/per_block_quant_fp8.h"
#include "cpu/per_token_group_quant_fp8.h"
#include "cpu/probe.h"
#include "cpu/silu_and_mul.h"
#include "cpu/silu_and_mul_quant_fp8.h"

namespace moela::cpu {

struct Kernels {
  const char* isa;
  GatherRows gather_rows;
  GemmKernels gemm;
  GemmKernels grouped_gemm_wgrad;
  FusedExpertsKernels fused_experts;
  IndexerCacheWrite indexer_cache_write;
  IndexerLogitsKernels indexer_logits;
  IndexerTopk indexer_topk;
  MergeStates merge_states;
  MlaKernels mla_attend;
  MlaCacheWrite mla_cache_write;
  MlaNormRopeCacheWrite mla_norm_rope_cache_write;
  MlaPrefillKernel mla_prefill;
  MlaPrefillBackwardKernel mla_prefill_backward;
  MoePermute moe_permute;
  MoeTopk moe_topk;
  MoeUnpermute moe_unpermute;
  PerBlockDequantFp8 per_block_dequant_fp8;
  PerBlockQuantFp8 per_block_quant_fp8;
  PerTokenGroupQuantFp8 per_token_group_quant_fp8;
  SiluAndMul silu_and_mul;
  SiluAndMulQuantFp8 silu_and_mul_quant_fp8;
  Probe probe;
};

extern const Kernels kScalar;
extern const Kernels kAvx2;         // defined where MOELA_ISA_avx2 is
extern const Kernels kAvx512;       // defined where MOELA_ISA_avx512 is
extern const Kernels kAvx512Bf16;   // defined where MOELA_ISA_avx512_bf16 is
extern const GemmKernels kAmxGemm;  // defined where MOELA_ISA_amx_bf16 is, as the next six
extern const FusedExpertsKernels kAmxFusedExperts;
extern const IndexerLogitsKernels kAmxIndexerLogits;
extern const MlaKernels kAmxMlaAttend;
extern const MlaPrefillKernel kAmxMlaPrefill;
extern const MlaPrefillBackwardKernel kAmxMlaPrefillBackward;
extern const Probe kAmxProbe;
extern const Kernels kNeon;  // defined where MOELA_ISA_neon is

// The widest set that this machine runs, or the one that MOELA_CPU_ISA names. Chosen once. Throws
// std::invalid_argument if MOELA_CPU_ISA names none, or one that this machine does not run.
const Kernels& kernels();

}  // namespace moela::cpu
