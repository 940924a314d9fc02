// Interface of the CUDA fp8_gemm. Definition: python/moela/reference/fp8_gemm.py.
#pragma once

#include <cstdint>
#include <string>

#include "cuda/hopper/launch.h"
#include "plan/fp8_gemm_sm90.h"

namespace moela::cuda {

enum class GemmFloat { kFloat32, kBFloat16, kFloat16, kE8m0 };

struct Fp8GemmArgs {
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

// "" or why TMA cannot read these operands; Triton takes those calls.
std::string why_not_fp8_gemm(const Fp8GemmArgs& args);

// Writes d. "" or why it could not be launched. M, N and K are positive.
std::string launch_fp8_gemm(const Fp8GemmArgs& args, const plan::Fp8GemmSm90Plan& plan, Stream stream);

}  // namespace moela::cuda
