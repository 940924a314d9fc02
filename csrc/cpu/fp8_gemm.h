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
  bool has_large_sf;  // one of sf_b is finite and 2^8 or more: 2^120 times it might overflow
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
  plan::Fp8GemmPath path;
  int64_t m0;
  int64_t num_rows;
  float* a;  // [num_rows, K rounded up to 64] in the order of `path`: see fp8_gemm_kernel.h
};

struct Fp8GemmKernels {
  plan::Fp8GemmShape shape;
  // Packs slabs [begin, end) of kFp8GemmSlab columns of K.
  void (*pack)(const Fp8GemmParams&, const Fp8GemmChunk&, int64_t begin, int64_t end);
  // Computes tasks [begin, end).
  void (*run)(const Fp8GemmParams&, const Fp8GemmChunk&, int64_t begin, int64_t end);
};

constexpr int64_t kFp8GemmSlab = 1024;

inline int64_t fp8_gemm_padded_k(const Fp8GemmParams& p) { return (p.K + 63) / 64 * 64; }

// Fp8GemmParams::has_large_sf of `count` scale factors.
inline bool has_large_sf(const float* sf_b, int64_t count) {
  bool large = false;
  for (int64_t i = 0; i < count; ++i) {
    const float magnitude = __builtin_fabsf(sf_b[i]);
    large |= magnitude >= 0x1p8f && magnitude <= 0x1.fffffep127f;
  }
  return large;
}

// Computes d. `packed` has room for rows_per_chunk * fp8_gemm_padded_k floats. parallel(count, cost, f) runs
// f(begin, end) over [0, count) on the caller's threads; cost: of one item in nanoseconds, roughly.
template <class Parallel>
void fp8_gemm(const Fp8GemmKernels& kernel, const plan::Fp8GemmPlan& plan, const Fp8GemmParams& p,
              float* packed, const Parallel& parallel) {
  const int64_t slabs = (p.K + kFp8GemmSlab - 1) / kFp8GemmSlab;
  for (int64_t m0 = 0; m0 < p.M; m0 += plan.rows_per_chunk) {
    const int64_t num_rows = p.M - m0 < plan.rows_per_chunk ? p.M - m0 : plan.rows_per_chunk;
    const Fp8GemmChunk chunk = {.path = plan.path, .m0 = m0, .num_rows = num_rows, .a = packed};
    // A packed element takes about half a nanosecond; a task reads its weights at 10 GB/s or multiplies at
    // 100 GFLOP/s.
    const auto rows = static_cast<double>(num_rows), K = static_cast<double>(p.K);
    parallel(slabs, 0.5 * rows * (slabs > 1 ? kFp8GemmSlab : K),
             [&](int64_t begin, int64_t end) { kernel.pack(p, chunk, begin, end); });
    parallel(plan.num_tasks, kernel.shape.cols * K * (0.1 + 0.02 * rows),
             [&](int64_t begin, int64_t end) { kernel.run(p, chunk, begin, end); });
  }
}

}  // namespace moela::cpu
