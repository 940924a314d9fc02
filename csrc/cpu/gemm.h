// Interface of the CPU matrix products that fp8_gemm, the grouped ones and fused_experts are made of: plain
// pointers and ints. csrc/cpu/gemm_driver.h runs a list of them.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"
#include "plan/grouped_gemm.h"

namespace moela::cpu {

// To what rows of a are rounded before they are multiplied: e4m3 with a scale factor per 128 columns, as
// per_token_group_quant_fp8 does it.
enum class ActivationCast { kNone, kFp8, kFp8Ue8m0 };

// d = (a * sf_a) @ (b * sf_b).T + bias.
struct GemmProblem {
  const void* a;  // [M, K] of a_dtype, rows lda elements apart
  Dtype a_dtype;
  int64_t lda;
  const int32_t* a_rows;  // [M]: row m is row a_rows[m] of a; nullptr: it is row m
  const float* sf_a;      // [M, ceil(K/128)], may be nullptr
  int64_t sf_a_stride_m;
  int64_t sf_a_stride_k;
  ActivationCast a_cast;
  const void* b;  // [N, K] of b_dtype
  Dtype b_dtype;
  int64_t stride_bn;  // elements; one of the two is 1
  int64_t stride_bk;
  const float* sf_b;  // [ceil(N/128), ceil(K/128)], contiguous; nullptr unless b is e4m3
  bool has_large_sf;  // one of sf_b is finite and 2^8 or more: 2^120 times it might overflow
  const float* bias;  // [N], may be nullptr
  void* d;            // [M, N] of d_dtype, rows ldd elements apart
  Dtype d_dtype;
  int64_t ldd;
  int64_t M;
  int64_t N;
  int64_t K;
};

// Rows [m0, m0 + num_rows) of a problem, converted and reordered once for all tasks.
struct GemmChunk {
  const GemmProblem* problem;
  plan::GemmPath path;
  int64_t m0;
  int64_t num_rows;
  float* a;  // [num_rows, padded_k(K)] in the order of `path`: see the kernels
};

struct GemmKernels {
  plan::GemmShape shape;
  // Packs slabs [begin, end) of kGemmSlab columns of K, as far as there are.
  void (*pack)(const GemmChunk&, int64_t begin, int64_t end);
  // Computes tasks [begin, end) of shape.cols columns of d.
  void (*run)(const GemmChunk&, int64_t begin, int64_t end);
};

constexpr int64_t kGemmSlab = 1024;

// Floats of a packed row: its columns in whole blocks of 128, and what gemm_bf16.h and gemm_amx.h note of
// each slab.
constexpr int64_t kGemmSlabNotes = 16;
inline int64_t padded_k(int64_t K) {
  return (K + 127) / 128 * 128 + (K + kGemmSlab - 1) / kGemmSlab * kGemmSlabNotes;
}

// Whether bfloat16 holds every element of a, or what it is rounded to, and of b exactly, and b is laid out as
// checkpoints have it.
inline bool is_bf16(const GemmProblem& p) {
  const bool is_a =
      p.a_dtype == Dtype::kBFloat16 || p.a_dtype == Dtype::kE4m3 || p.a_cast != ActivationCast::kNone;
  return is_a && (p.b_dtype == Dtype::kE4m3 || p.b_dtype == Dtype::kBFloat16) && p.stride_bk == 1;
}

}  // namespace moela::cpu
