// What an FP8 GEMM on Hopper is given: plain pointers and ints.
#pragma once

#include <cstdint>

namespace moela::cuda {

enum class GemmFloat { kFloat32, kBFloat16, kFloat16, kE8m0 };

struct GemmArgs {
  const uint8_t* a;  // [M, K] e4m3 codes, rows lda bytes apart; a and lda multiples of 16
  int64_t lda;
  const float* sf_a;  // [M, ceil(K/128)], any strides
  int64_t sf_a_stride_m;
  int64_t sf_a_stride_k;
  const uint8_t* b;  // [N, K] e4m3 codes, rows ldb bytes apart; b and ldb multiples of 16
  int64_t ldb;
  const void* sf_b;  // [ceil(N/128), ceil(K/128)] of sf_b_dtype, any strides
  GemmFloat sf_b_dtype;
  int64_t sf_b_stride_n;
  int64_t sf_b_stride_k;
  const void* bias;  // [N] of bias_dtype, may be nullptr
  GemmFloat bias_dtype;
  int64_t bias_stride;
  void* d;  // [M, N] of d_dtype, rows ldd elements apart
  GemmFloat d_dtype;
  int64_t ldd;
  int M;
  int N;
  int K;
};

}  // namespace moela::cuda
