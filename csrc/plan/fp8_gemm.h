// Plan of the CPU fp8_gemm: which kernel, and what one task is. Pure: no torch, no SIMD, unit-tested.
#pragma once

#include <cstdint>
#include <ostream>

namespace moela::plan {

// What a kernel set of one instruction set can do; csrc/cpu/isa.h holds one per set.
struct Fp8GemmShape {
  int lanes;         // columns of d in one vector
  int fused_rows;    // largest M of the fused kernel
  int panel_rows;    // rows of d in the largest register tile of the panel kernel
  int panel_cols;    // columns of d in that tile
};

enum class Fp8GemmPath {
  kFused,  // decode in registers and multiply at once: for few rows, bound by the DRAM rate
  kPanel,  // decode [128, panel_cols] into L1, then use it for every row: bound by the FMA rate
};

struct Fp8GemmPlan {
  Fp8GemmPath path;
  int64_t rows_per_chunk;  // rows of a that are packed at once; weights are decoded once per chunk
  int64_t num_chunks;
  int cols_per_task;       // columns of d that one task computes; divides 128, so one scale factor of b covers them
  int64_t num_tasks;       // per chunk
};

// The sum over K is never split and its order does not depend on the plan, so neither M nor the number of threads
// can change a bit of the result.
inline Fp8GemmPlan plan_fp8_gemm(int64_t M, int64_t N, const Fp8GemmShape& shape) {
  const bool fused = M <= shape.fused_rows;
  // 252 rows of float32 C for 32 columns are 32 KB, beside the panel (16 KB): L2 on every machine. Decoding a weight
  // costs about as much as 1.3 multiply-adds, so a chunk of 252 loses 0.5 %.
  const int64_t limit = 252 / shape.panel_rows * shape.panel_rows;
  const int64_t num_chunks = fused || M == 0 ? 1 : (M + limit - 1) / limit;
  const int64_t even = num_chunks == 0 ? 0 : (M + num_chunks - 1) / num_chunks;
  // Two vectors of columns give the fused kernel four independent sums, the latency of a multiply-add.
  const int cols = fused ? (M == 1 ? 2 : 1) * shape.lanes : shape.panel_cols;
  return {
      .path = fused ? Fp8GemmPath::kFused : Fp8GemmPath::kPanel,
      .rows_per_chunk = even,
      .num_chunks = num_chunks,
      .cols_per_task = cols,
      .num_tasks = (N + cols - 1) / cols,
  };
}

inline std::ostream& operator<<(std::ostream& out, const Fp8GemmPlan& p) {
  return out << (p.path == Fp8GemmPath::kFused ? "fused" : "panel") << ", " << p.num_chunks << " x "
             << p.rows_per_chunk << " rows, " << p.num_tasks << " tasks x " << p.cols_per_task << " columns";
}

}  // namespace moela::plan
