// Plan of the CPU fp8_gemm: how rows and columns are cut. Pure: no torch, no SIMD, unit-tested.
#pragma once

#include <cstdint>
#include <ostream>

namespace moela::plan {

// What the kernels of one instruction set work in; each set says its own in csrc/cpu/fp8_gemm_kernel.h.
struct Fp8GemmShape {
  int tile_rows;        // rows of d in one register tile
  int cols;             // columns of d in one task; divides 128, so that one scale factor of b covers them
  int code_panel_rows;  // up to this many rows the weights stay codes until they are multiplied
};

struct Fp8GemmPlan {
  bool code_panel;
  int64_t rows_per_chunk;  // rows of a that are packed at once; weights are decoded once per chunk
  int64_t num_chunks;
  int64_t num_tasks;  // per chunk
};

// The sum over K is never split and its order does not depend on the plan, so neither M nor the number of
// threads can change a bit of the result.
inline Fp8GemmPlan plan_fp8_gemm(int64_t M, int64_t N, const Fp8GemmShape& shape) {
  // 252 rows of float32 for 32 columns are 32 KB, twice, beside the panel (16 KB): L2 on every machine.
  // Decoding a weight costs about as much as seven multiply-adds, so chunks of 252 rows lose 3 % to it.
  constexpr int64_t kMaxRows = 252;
  const int64_t num_chunks = M == 0 ? 0 : (M + kMaxRows - 1) / kMaxRows;
  return {
      .code_panel = M <= shape.code_panel_rows,
      .rows_per_chunk = num_chunks == 0 ? 0 : (M + num_chunks - 1) / num_chunks,
      .num_chunks = num_chunks,
      .num_tasks = (N + shape.cols - 1) / shape.cols,
  };
}

inline std::ostream& operator<<(std::ostream& out, const Fp8GemmPlan& p) {
  return out << (p.code_panel ? "code" : "float") << " panel, " << p.num_chunks << " x " << p.rows_per_chunk
             << " rows, " << p.num_tasks << " tasks";
}

}  // namespace moela::plan
