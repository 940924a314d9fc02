// Interface of the CPU fp8_gemm: plain pointers and ints. Definition: python/moela/reference/fp8_gemm.py.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"
#include "plan/fp8_gemm.h"

namespace moela::cpu {

struct Fp8GemmParams {
  const void* a;  // [M, K] of a_dtype, rows lda elements apart
  Dtype a_dtype;
  int64_t lda;
  const float* sf_a;  // [M, ceil(K/128)], may be nullptr
  int64_t sf_a_stride_m;
  int64_t sf_a_stride_k;
  const uint8_t* b;  // [N, K] e4m3 codes, rows ldb apart
  int64_t ldb;
  const float* sf_b;  // [ceil(N/128), ceil(K/128)], contiguous
  const float* bias;  // [N], may be nullptr
  void* d;            // [M, N] of d_dtype, rows ldd elements apart
  Dtype d_dtype;
  int64_t ldd;
  int64_t M;
  int64_t N;
  int64_t K;
};

// A chunk of rows of a, converted and reordered once for all tasks.
struct Fp8GemmChunk {
  int64_t m0;
  int64_t num_rows;
  float* a;     // [ceil(K/128)][row tile][128][rows of the tile]: see pack in fp8_gemm_kernel.h
  float* sf_a;  // [ceil(K/128)][num_rows]; nullptr without sf_a
  bool tiny;    // use the code panel: a is scaled by 2^60, because its weights are left scaled by 2^-120
};

struct Fp8GemmKernels {
  plan::Fp8GemmShape shape;
  // Whether these rows may be scaled for the code panel without losing a bit.
  bool (*fits_tiny)(const Fp8GemmParams&, int64_t m0, int64_t num_rows);
  // Packs blocks [begin, end) of 128 columns of K.
  void (*pack)(const Fp8GemmParams&, const Fp8GemmChunk&, int64_t begin, int64_t end);
  // Computes tasks [begin, end).
  void (*run)(const Fp8GemmParams&, const Fp8GemmChunk&, int64_t begin, int64_t end);
};

}  // namespace moela::cpu
