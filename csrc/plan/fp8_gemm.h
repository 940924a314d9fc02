// Plan of the CPU fp8_gemm: which kernel, and how rows and columns are cut. Pure: no torch, no SIMD,
// unit-tested.
#pragma once

#include <cstdint>
#include <ostream>

namespace moela::plan {

// What the kernels of one instruction set work in; each set says its own in csrc/cpu/fp8_gemm_kernel.h.
struct Fp8GemmShape {
  int cols;      // columns of d in one task; divides 128, so that one scale factor of b covers them
  int dot_rows;  // up to this many rows of a, rows of b go straight into dot products
};

// dot: lanes are columns of K. panel: lanes are columns of d, and weights are transposed into it.
enum class Fp8GemmPath { kDot, kPanel };

struct Fp8GemmPlan {
  Fp8GemmPath path;
  int64_t rows_per_chunk;  // rows of a that are packed at once; weights are decoded once per chunk
  int64_t num_chunks;
  int64_t num_tasks;  // per chunk
};

// The sum over K is never split and its order does not depend on the plan, so neither M nor the number of
// threads can change a bit of the result. `has_large_sf`: some scale factor of b is 2^8 or more, which only
// the panel takes.
inline Fp8GemmPlan plan_fp8_gemm(int64_t M, int64_t N, bool has_large_sf, const Fp8GemmShape& shape) {
  // 252 rows of sums for 32 columns, and four levels of partial sums, are 160 KB beside the panel (32 KB):
  // L2. Transposing and decoding a weight costs as much as five rows' multiply-adds (docs/FACTS.md): 2 % of
  // 252.
  constexpr int64_t kMaxRows = 252;
  const int64_t num_chunks = (M + kMaxRows - 1) / kMaxRows;
  return {
      .path = M <= shape.dot_rows && !has_large_sf ? Fp8GemmPath::kDot : Fp8GemmPath::kPanel,
      .rows_per_chunk = num_chunks == 0 ? 0 : (M + num_chunks - 1) / num_chunks,
      .num_chunks = num_chunks,
      .num_tasks = (N + shape.cols - 1) / shape.cols,
  };
}

inline const char* name_of(Fp8GemmPath path) { return path == Fp8GemmPath::kDot ? "dot" : "panel"; }

inline std::ostream& operator<<(std::ostream& out, const Fp8GemmPlan& p) {
  return out << name_of(p.path) << ", " << p.num_chunks << " x " << p.rows_per_chunk << " rows, "
             << p.num_tasks << " tasks";
}

}  // namespace moela::plan
