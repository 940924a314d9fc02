// What is done in tiles where the CPU has AMX (docs/adr/0011); isa.cpp takes the rest from avx512.
#define MOELA_SIMD_AVX512
#define MOELA_SIMD_BF16
#define MOELA_SIMD_AMX
#include "cpu/fused_experts_kernel.h"
#include "cpu/indexer_logits_amx.h"
#include "cpu/isa.h"

constinit const moela::cpu::GemmKernels moela::cpu::kAmxGemm = kGemmKernels;
constinit const moela::cpu::FusedExpertsKernels moela::cpu::kAmxFusedExperts = kFusedExpertsKernels;
constinit const moela::cpu::IndexerLogitsKernels moela::cpu::kAmxIndexerLogits = {indexer_pack,
                                                                                  indexer_score_tiles};
