// grouped_gemm_wgrad on the CPU: d = a.T @ b, where a [K, M] and b [K, N] are rows of grad and a of one
// expert.
//
// Bound: the multiply-add rate; for a few rows an expert, writing d. One task is kCols columns of d for all
// rows of the chunk. Both operands have what a step of the sum needs side by side: nothing is transposed, a
// is only cut into row tiles.
//
// Numerics, the same on every instruction set: rows are summed in ascending order in chains of 64 fused
// multiply-adds, and the chains are added in ascending order.
#pragma once

#include "cpu/gemm_kernel.h"

namespace {

// Steps of the chain that begins at row k: up to kSteps, padded with zeros to the four of multiply_chain.
inline int64_t chain_steps(const GemmProblem& p, int64_t k) {
  return ceil_div(min_of(kSteps, p.K - k), 4) * 4;
}

// [chain][row tile][step][row of the tile].
void pack_wgrad(const GemmChunk& chunk, int64_t begin, int64_t end) {
  [[maybe_unused]] const ExactSubnormals guard;
  const GemmProblem& p = *chunk.problem;
  const RowTiles tiles(chunk.num_rows, kTileRows);
  float row[kMaxRows];
  for (int64_t k0 = begin * kSlab; k0 < min_of(end * kSlab, p.K); k0 += kSteps) {
    const int64_t steps = chain_steps(p, k0);
    float* out = chunk.a + k0 * chunk.num_rows;
    for (int64_t k = 0; k < steps; ++k) {
      if (k0 + k < p.K)
        load_floats(p.a, p.a_dtype, (k0 + k) * p.lda + chunk.m0, chunk.num_rows, row);
      else
        std::memset(row, 0, sizeof row);
      for (int64_t t = 0; t < tiles.count; ++t)
        std::memcpy(out + tiles.begin(t) * steps + k * tiles.rows(t), row + tiles.begin(t),
                    tiles.rows(t) * sizeof(float));
    }
  }
}

// Rows k0 ... of b as float32, into weights[steps][kCols]; zeros beyond K and beyond the columns.
template <class Codec>
void load_steps(const GemmProblem& p, const Columns& columns, int64_t k0, int64_t steps, float* weights) {
  using Element = typename Codec::Element;
  const Element* row = static_cast<const Element*>(p.b) + k0 * p.stride_bk + columns.n0;
  for (int64_t k = 0; k < steps; ++k, row += p.stride_bk, weights += kCols) {
    Element copy[kCols];
    const Element* from = row;
    if (columns.count < kCols || k0 + k >= p.K) {
      std::memset(copy, 0, sizeof copy);
      if (k0 + k < p.K) std::memcpy(copy, row, columns.count * sizeof(Element));
      from = copy;
    }
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) store(weights + v * kLanes, Codec::widen(from + v * kLanes));
  }
}

template <class Codec>
void wgrad_sums(const GemmChunk& chunk, const Columns& columns, float* sums) {
  const GemmProblem& p = *chunk.problem;
  const RowTiles tiles(chunk.num_rows, kTileRows);
  const MultiplyFn larger = multiply_for(tiles.base + 1), smaller = multiply_for(tiles.base);
  alignas(64) float weights[kSteps * kCols];
  std::memset(sums, 0, chunk.num_rows * kCols * sizeof(float));
  for (int64_t k0 = 0; k0 < p.K; k0 += kSteps) {
    const int64_t steps = chain_steps(p, k0);
    load_steps<Codec>(p, columns, k0, steps, weights);
    for (int64_t t = 0; t < tiles.count; ++t) {
      float* out = sums + tiles.begin(t) * kCols;
      (t < tiles.larger ? larger : smaller)(chunk.a + k0 * chunk.num_rows + tiles.begin(t) * steps, weights,
                                            steps, &out, 1, out);
    }
  }
}

void run_wgrad(const GemmChunk& chunk, int64_t begin, int64_t end) {
  [[maybe_unused]] const ExactSubnormals guard;
  alignas(64) float sums[kSumsSize];
  const GemmProblem& p = *chunk.problem;
  for (int64_t task = begin; task < end; ++task) {
    const Columns columns = columns_of(p, task);
    with_codec(p.b_dtype, [&](auto codec) {
      if constexpr (!decltype(codec)::kHasSf) wgrad_sums<decltype(codec)>(chunk, columns, sums);
    });
    store_sums(chunk, columns, sums);
  }
}

constexpr GemmKernels kGroupedGemmWgradKernels = {
    .shape = {.cols = kCols, .dot_rows = 0}, .pack = pack_wgrad, .run = run_wgrad};

}  // namespace
