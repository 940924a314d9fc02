// Plan of the CPU matrix products: a list of problems, one per expert (fp8_gemm is a list of one), cut into
// chunks of rows, waves of chunks and tasks of columns. Pure: no torch, no SIMD, unit-tested.
#pragma once

#include <cstdint>
#include <ostream>
#include <vector>

namespace moela::plan {

// What the kernels of one instruction set work in; each set says its own in csrc/cpu/gemm_kernel.h.
struct GemmShape {
  int cols;               // columns of d in one task
  int dot_rows;           // up to this many rows of a, rows of b go straight into dot products
  bool has_bf16 = false;  // whether it multiplies pairs of bfloat16
};

// dot: lanes are columns of K. panel: lanes are columns of d, and weights are transposed into it. bf16: pairs
// of bfloat16, for any number of rows.
enum class GemmPath { kDot, kPanel, kBf16 };

// The rows of one problem. `needs_panel`: b is laid out, or has scale factors, as dot products do not take
// them. `is_bf16`: bfloat16 holds every element of a and b exactly.
struct GemmRows {
  int64_t count;
  bool needs_panel;
  bool is_bf16 = false;
};

inline GemmPath path_of(const GemmRows& rows, const GemmShape& shape) {
  if (shape.has_bf16 && rows.is_bf16) return GemmPath::kBf16;
  return rows.count <= shape.dot_rows && !rows.needs_panel ? GemmPath::kDot : GemmPath::kPanel;
}

// Rows [m0, m0 + num_rows) of a problem, for which its weights are decoded once.
struct GemmRowChunk {
  int64_t problem;
  GemmPath path;
  int64_t m0;
  int64_t num_rows;
  int64_t row_of_wave;  // rows of the same wave before it
};

struct GroupedGemmPlan {
  std::vector<GemmRowChunk> chunks;  // by problem, then by row
  std::vector<int64_t> waves;        // chunks [waves[i], waves[i + 1]) are packed at once
  int64_t rows_per_wave;             // the most
  int64_t num_tasks;                 // per chunk

  int64_t num_waves() const { return static_cast<int64_t>(waves.size()) - 1; }
};

// 256 rows of sums for 32 columns, and four levels of partial sums, are 160 KB beside the panel (32 KB): L2.
// Transposing and decoding a weight costs as much as five rows' multiply-adds (docs/FACTS.md): 2 % of 256.
constexpr int64_t kMaxChunkRows = 256;

// What the rows of a wave may take of memory: they are read again for every task and belong in L3. A few
// rows of many experts are one wave, so that all threads have work until the last task.
constexpr int64_t kMaxWaveBytes = 8 << 20;

// `bytes_per_row`: what a row of a wave takes. The sum over K is never split and its order does not depend on
// the plan, so neither the number of rows nor of threads can change a bit of the result.
inline GroupedGemmPlan plan_grouped_gemm(const std::vector<GemmRows>& problems, int64_t N,
                                         int64_t bytes_per_row, const GemmShape& shape) {
  GroupedGemmPlan plan = {
      .chunks = {}, .waves = {0}, .rows_per_wave = 0, .num_tasks = (N + shape.cols - 1) / shape.cols};
  int64_t wave_rows = 0;
  for (size_t i = 0; i < problems.size(); ++i) {
    const int64_t M = problems[i].count;
    const GemmPath path = path_of(problems[i], shape);
    const int64_t num_chunks = (M + kMaxChunkRows - 1) / kMaxChunkRows;
    for (int64_t c = 0; c < num_chunks; ++c) {
      const int64_t m0 = M * c / num_chunks, num_rows = M * (c + 1) / num_chunks - m0;
      if (wave_rows != 0 && (wave_rows + num_rows) * bytes_per_row > kMaxWaveBytes) {
        plan.waves.push_back(static_cast<int64_t>(plan.chunks.size()));
        wave_rows = 0;
      }
      plan.chunks.push_back({.problem = static_cast<int64_t>(i),
                             .path = path,
                             .m0 = m0,
                             .num_rows = num_rows,
                             .row_of_wave = wave_rows});
      wave_rows += num_rows;
      plan.rows_per_wave = wave_rows > plan.rows_per_wave ? wave_rows : plan.rows_per_wave;
    }
  }
  if (!plan.chunks.empty()) plan.waves.push_back(static_cast<int64_t>(plan.chunks.size()));
  return plan;
}

inline const char* name_of(GemmPath path) {
  return path == GemmPath::kDot ? "dot" : path == GemmPath::kPanel ? "panel" : "bf16";
}

inline std::ostream& operator<<(std::ostream& out, const GroupedGemmPlan& p) {
  int64_t rows = 0;
  for (const GemmRowChunk& chunk : p.chunks) rows += chunk.num_rows;
  out << rows << " rows";
  for (const GemmPath path : {GemmPath::kDot, GemmPath::kPanel, GemmPath::kBf16}) {
    int64_t count = 0;
    for (const GemmRowChunk& chunk : p.chunks) count += chunk.path == path;
    if (count != 0) out << ", " << count << " " << name_of(path);
  }
  return out << " chunks in " << p.num_waves() << " waves, " << p.num_tasks << " tasks each";
}

}  // namespace moela::plan
