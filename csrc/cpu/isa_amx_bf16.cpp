// What is done in tiles where the CPU has AMX (docs/adr/0011); isa.cpp takes the rest from avx512.
#define MOELA_SIMD_AVX512
#define MOELA_SIMD_BF16
#define MOELA_SIMD_AMX
#include "cpu/fused_experts_kernel.h"
#include "cpu/indexer_logits_amx.h"
#include "cpu/isa.h"
#include "cpu/mla_attend_amx.h"
#include "cpu/mla_prefill_amx.h"
#include "cpu/mla_prefill_backward_amx.h"
#include "cpu/probe_amx.h"

namespace moela::cpu {

constinit const GemmKernels kAmxGemm = kGemmKernels;
constinit const FusedExpertsKernels kAmxFusedExperts = kFusedExpertsKernels;
constinit const IndexerLogitsKernels kAmxIndexerLogits = {indexer_pack, indexer_score_tiles};
constinit const MlaKernels kAmxMlaAttend = kMlaTileKernels;
constinit const MlaPrefillKernel kAmxMlaPrefill = kMlaPrefillTileKernel;
constinit const MlaPrefillBackwardKernel kAmxMlaPrefillBackward = kMlaPrefillBackwardTileKernel;
constinit const Probe kAmxProbe = kTileProbe;

}  // namespace moela::cpu
