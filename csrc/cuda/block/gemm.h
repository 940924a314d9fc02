// What an FP8 GEMM on Hopper is given: plain pointers and ints.
#pragma once

#include <cstdint>

#include "cuda/block/tile_schedule.h"

namespace moela::cuda {

enum class GemmFloat { kFloat32, kBFloat16, kFloat16, kE8m0 };

// One product, or one per expert. Strides of experts are 0 where there is no such dimension.
struct GemmArgs {
  const uint8_t* a;  // [M, K] e4m3 codes, rows lda bytes apart; a and lda multiples of 16
  int64_t lda;
  int64_t a_stride_e = 0;  // kCounts: [E, M, K]
  const float* sf_a;       // [M, ceil(K/128)], any strides
  int64_t sf_a_stride_m;
  int64_t sf_a_stride_k;
  int64_t sf_a_stride_e = 0;
  const uint8_t* b;  // [N, K] e4m3 codes, rows ldb bytes apart; b and ldb multiples of 16
  int64_t ldb;
  int64_t b_stride_e = 0;  // [E, N, K]
  const void* sf_b;        // [ceil(N/128), ceil(K/128)] of sf_b_dtype, any strides
  GemmFloat sf_b_dtype;
  int64_t sf_b_stride_n;
  int64_t sf_b_stride_k;
  int64_t sf_b_stride_e = 0;
  const void* bias = nullptr;  // [N] of bias_dtype
  GemmFloat bias_dtype = GemmFloat::kFloat32;
  int64_t bias_stride = 0;
  void* d;  // [M, N] of d_dtype, rows ldd elements apart
  GemmFloat d_dtype;
  int64_t ldd;
  int64_t d_stride_e = 0;  // kCounts: [E, M, N]
  int M;                   // kCounts: of each expert's matrix
  int N;
  int K;
  GroupKind groups = GroupKind::kDense;  // of the rows of a, which those of d are written for
  const int32_t* table = nullptr;        // expert_offsets or expert_counts
  int num_experts = 1;
};

}  // namespace moela::cuda
