// Runs a list of matrix products: per wave one parallel pass that packs its rows and one over all pairs of
// chunk and column task, in the order of the weights, so that each weight streams from memory once per chunk.
#pragma once

#include <vector>

#include "cpu/gemm.h"

namespace moela::cpu {

inline const void* at_element(const void* p, Dtype dtype, int64_t i) {
  return static_cast<const char*>(p) + i * size_of(dtype);
}
inline void* at_element(void* p, Dtype dtype, int64_t i) {
  return static_cast<char*>(p) + i * size_of(dtype);
}

inline plan::GemmRows gemm_rows(const GemmProblem& p) {
  return {.count = p.M, .needs_panel = p.has_large_sf || p.stride_bk != 1, .is_bf16 = is_bf16(p)};
}

inline plan::GroupedGemmPlan plan_of(const GemmKernels& kernel, const std::vector<GemmProblem>& problems,
                                     int64_t bytes_per_row) {
  std::vector<plan::GemmRows> rows;
  for (const GemmProblem& p : problems) rows.push_back(gemm_rows(p));
  return plan::plan_grouped_gemm(rows, problems[0].N, bytes_per_row, kernel.shape);
}

// The chunks of a wave. `packed` has room for rows_per_wave rows of `row_size` floats.
inline std::vector<GemmChunk> chunks_of(const plan::GroupedGemmPlan& plan, int64_t wave,
                                        const std::vector<GemmProblem>& problems, int64_t row_size,
                                        float* packed) {
  std::vector<GemmChunk> chunks;
  for (int64_t i = plan.waves[wave]; i < plan.waves[wave + 1]; ++i) {
    const plan::GemmRowChunk& c = plan.chunks[i];
    const GemmProblem& problem = problems[c.problem];
    chunks.push_back({.problem = &problem,
                      .path = c.path,
                      .m0 = c.m0,
                      .num_rows = c.num_rows,
                      .a = packed + c.row_of_wave * row_size});
  }
  return chunks;
}

// Runs f(index of the chunk, begin, end) over items [0, per_chunk) of every chunk. parallel(count, cost, f)
// runs f(begin, end) over [0, count) on the caller's threads; cost: of one item in nanoseconds, roughly.
template <class Parallel, class F>
void for_each_item(int64_t num_chunks, int64_t per_chunk, double cost, const Parallel& parallel, const F& f) {
  parallel(num_chunks * per_chunk, cost, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t chunk = begin / per_chunk, first = begin % per_chunk;
      const int64_t last = per_chunk < first + end - begin ? per_chunk : first + end - begin;
      f(chunk, first, last);
      begin += last - first;
    }
  });
}

// The longest sum: only those of grouped_gemm_wgrad differ.
inline int64_t max_k(const std::vector<GemmChunk>& chunks) {
  int64_t K = 0;
  for (const GemmChunk& chunk : chunks) K = chunk.problem->K > K ? chunk.problem->K : K;
  return K;
}

inline double mean_rows(const std::vector<GemmChunk>& chunks) {
  int64_t rows = 0;
  for (const GemmChunk& chunk : chunks) rows += chunk.num_rows;
  return static_cast<double>(rows) / static_cast<double>(chunks.size());
}

// What a task of `cols` columns costs: it reads its weights at 10 GB/s or multiplies at 100 GFLOP/s.
inline double task_cost(const std::vector<GemmChunk>& chunks, int64_t cols) {
  const auto weights = static_cast<double>(cols * max_k(chunks));
  return weights * (0.1 + 0.02 * mean_rows(chunks));
}

template <class Parallel>
void pack_chunks(const GemmKernels& kernel, const std::vector<GemmChunk>& chunks, const Parallel& parallel) {
  const int64_t K = max_k(chunks), slabs = (K + kGemmSlab - 1) / kGemmSlab;
  // A packed element takes about half a nanosecond.
  const double cost = 0.5 * mean_rows(chunks) * static_cast<double>(slabs > 1 ? kGemmSlab : K);
  for_each_item(static_cast<int64_t>(chunks.size()), slabs, cost, parallel,
                [&](int64_t chunk, int64_t begin, int64_t end) { kernel.pack(chunks[chunk], begin, end); });
}

// Computes d of every problem; all have the same N. allocate(count) gives a smart pointer to `count`
// floats.
template <class Allocate, class Parallel>
void run_gemms(const GemmKernels& kernel, const std::vector<GemmProblem>& problems, const Allocate& allocate,
               const Parallel& parallel) {
  if (problems.empty()) return;
  int64_t row_size = 0;
  for (const GemmProblem& p : problems) row_size = padded_k(p.K) > row_size ? padded_k(p.K) : row_size;
  const auto plan = plan_of(kernel, problems, row_size * static_cast<int64_t>(sizeof(float)));
  const auto packed = allocate(plan.rows_per_wave * row_size);
  for (int64_t wave = 0; wave < plan.num_waves(); ++wave) {
    const std::vector<GemmChunk> chunks = chunks_of(plan, wave, problems, row_size, packed.get());
    pack_chunks(kernel, chunks, parallel);
    for_each_item(static_cast<int64_t>(chunks.size()), plan.num_tasks, task_cost(chunks, kernel.shape.cols),
                  parallel,
                  [&](int64_t chunk, int64_t begin, int64_t end) { kernel.run(chunks[chunk], begin, end); });
  }
}

}  // namespace moela::cpu
