// Matrix products with a b that is stored [K, N], columns of d side by side: nothing is transposed. Part of
// gemm_kernel.h, which has the numerics; the bits are those of the same b stored [N, K],
// as far as that is multiplied in float32 too (gemm_bf16.h).
//
// Bound: the multiply-add rate for many rows of a; for few rows how fast b can be read, a piece of 512 bytes
// from each row. Rows are on pages of their own, so a task alone, with 64 bytes of each, would wait for a
// walk through the page tables per line: tasks are computed several at a time, from a copy of a slab in L2.
#pragma once

#include "cpu/gemm_panel.h"

namespace {

constexpr int kRowPiece =
    512;  // bytes of a row of b; with 64 3 GB/s instead of 7 (one row of a, 4 KB pages, Zen 4)

// kTasks tasks of columns of a slab of b.
template <class Codec>
struct RowPanel {
  using Element = typename Codec::Element;
  static constexpr int kTasks = kRowPiece / (kCols * sizeof(Element));

  // Columns [columns.n0, columns.n0 + columns.count), zeros beyond and beyond K.
  void fill(const GemmProblem& p, const Slab<Codec>& slab, const Columns& columns) {
    const Element* row = static_cast<const Element*>(p.b) + slab.k0 * p.stride_bk + columns.n0;
    const int64_t whole = columns.count / kCols, left = columns.count % kCols;
    for (int64_t k = 0; k < slab.groups * kGroup<Codec>; ++k, row += p.stride_bk) {
      if (k >= slab.cols) {
        for (auto& task : elements) std::memset(task[k], 0, sizeof task[k]);
        continue;
      }
      constexpr int kRowsAhead = 8;
      for (int byte = 0; byte < kRowPiece; byte += kLine)
        prefetch_l1(reinterpret_cast<const uint8_t*>(row + kRowsAhead * p.stride_bk) + byte);
      for (int64_t t = 0; t < whole; ++t) std::memcpy(elements[t][k], row + t * kCols, sizeof elements[t][k]);
      if (left == 0) continue;
      std::memset(elements[whole][k], 0, sizeof elements[whole][k]);
      std::memcpy(elements[whole][k], row + whole * kCols, left * sizeof(Element));
    }
  }

  // As Panel::decode.
  void decode(int64_t task, int chain, int64_t groups, float* weights) const {
    for (int64_t g = 0; g < groups; ++g)
#pragma GCC unroll 2
      for (int i = 0; i < Codec::kPerWord; ++i, weights += kCols) {
        const Element* row = elements[task][g * kGroup<Codec> + chain * Codec::kPerWord + i];
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) store(weights + v * kLanes, Codec::widen(row + v * kLanes));
      }
  }

  alignas(64) Element elements[kTasks][kSlab][kCols];
};

// sums[task][num_rows][kCols] of some tasks of columns, at most RowPanel::kTasks.
template <class Codec>
void rows_sums(const GemmChunk& chunk, const Columns& columns, float* sums) {
  static thread_local RowPanel<Codec> panel;
  const GemmProblem& p = *chunk.problem;
  const int64_t tasks = ceil_div(columns.count, kCols), size = chunk.num_rows * kCols;
  std::memset(sums, 0, tasks * size * sizeof(float));
  for (int64_t s = 0; s < num_slabs(p); ++s) {
    const Slab<Codec> slab(p, s);
    panel.fill(p, slab, columns);
    for (int64_t task = 0; task < tasks; ++task)
      multiply_slab(
          chunk.a + slab.k0 * chunk.num_rows, chunk.num_rows, slab.groups * Codec::kPerWord,
          [&](int chain, float* weights) { panel.decode(task, chain, slab.groups, weights); }, [](int) {},
          sums + task * size);
  }
}

}  // namespace
