// Matrix products with a b that is stored [K, N], columns of d side by side: nothing is transposed. Part of
// gemm_kernel.h, which has the numerics; the bits are those of the same b stored [N, K].
//
// Bound: the multiply-add rate for many rows. For few rows the DRAM rate is out of reach: a task reads one or
// two lines of each row of b, each on a page of its own.
#pragma once

#include "cpu/gemm_panel.h"

namespace {

// Columns [0, kCols) of rows of b, from a pointer to the first; of the columns only `count` exist.
template <class Codec>
struct RowsOfB {
  using Element = typename Codec::Element;
  const Element* first;
  int64_t ld;  // elements
  int64_t count;

  // Row k as float32.
  MOELA_INLINE void load_into(int64_t k, float* weights) const {
    const Element* row = first + k * ld;
    Element whole[kCols];
    if (count < kCols) {
      std::memset(whole, 0, sizeof whole);
      std::memcpy(whole, row, count * sizeof(Element));
      row = whole;
    }
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) store(weights + v * kLanes, Codec::widen(row + v * kLanes));
  }

  MOELA_INLINE void prefetch(int64_t k) const {
    const auto* row = reinterpret_cast<const uint8_t*>(first + k * ld);
    for (uint64_t byte = 0; byte < kCols * sizeof(Element); byte += kLine) prefetch_l2(row + byte);
  }
};

// Prefetches an eighth of the rows that come next: as prefetch_next in gemm_panel.h.
template <class Codec>
void prefetch_rows(const RowsOfB<Codec>& next, int64_t num_rows, int pass) {
  if (pass < kChains / 2) return;
  const int64_t each = ceil_div(num_rows, kChains / 2), first = (pass - kChains / 2) * each;
  for (int64_t k = first; k < min_of(first + each, num_rows); ++k) next.prefetch(k);
}

template <class Codec>
void rows_sums(const GemmChunk& chunk, const Columns& columns, float* sums) {
  using Element = typename Codec::Element;
  const GemmProblem& p = *chunk.problem;
  const auto* b = static_cast<const Element*>(p.b);
  std::memset(sums, 0, chunk.num_rows * kCols * sizeof(float));
  for (int64_t s = 0; s < num_slabs(p); ++s) {
    const Slab<Codec> slab(p, s);
    const RowsOfB<Codec> rows = {b + slab.k0 * p.stride_bk + columns.n0, p.stride_bk, columns.count};
    RowsOfB<Codec> next = rows;
    const bool is_last = s + 1 == num_slabs(p);
    next.first = is_last ? static_cast<const Element*>(columns.next) : rows.first + kSlab * p.stride_bk;
    const int64_t next_rows = Slab<Codec>(p, is_last ? 0 : s + 1).cols;
    const auto decode = [&](int chain, float* weights) {
      for (int64_t g = 0; g < slab.groups; ++g)
        for (int i = 0; i < Codec::kPerWord; ++i, weights += kCols) {
          const int64_t k = g * kGroup<Codec> + chain * Codec::kPerWord + i;
          if (k < slab.cols)
            rows.load_into(k, weights);
          else
            std::memset(weights, 0, kCols * sizeof(float));
        }
    };
    multiply_slab(
        chunk.a + slab.k0 * chunk.num_rows, chunk.num_rows, slab.groups * Codec::kPerWord, decode,
        [&](int pass) { prefetch_rows(next, next_rows, pass); }, sums);
  }
}

}  // namespace
