// The two products of attention for one tile of keys, in register tiles. Part of mla_attend_kernel.h.
//
// Both take the tile as panels [column / 16][token][16]. For the scores keys are broadcast and heads lie in
// the lanes; for the values weights are broadcast and columns lie in the lanes: nothing is transposed.
#pragma once

#include "cpu/simd.h"

namespace {

constexpr int kMlaTokens = 96;  // of a tile: whole register tiles of every instruction set
constexpr int kMlaPanel = 16;   // columns of a panel
constexpr int kMlaChain = 12;   // panels whose products are summed in one chain: 192 columns
// From panel to panel: an odd number of cache lines, so that a row of keys spreads over all sets of L1.
constexpr int64_t kMlaPanelFloats = (kMlaTokens + 1) * kMlaPanel;

// Register tiles: rows x vectors. A single vector of heads is multiplied with more rows.
#if defined(MOELA_SIMD_AVX512)
constexpr int kMlaRows = 12, kMlaVecs = 2, kMlaRowsOfOne = 24;
#elif defined(MOELA_SIMD_AVX2)
constexpr int kMlaRows = 6, kMlaVecs = 2, kMlaRowsOfOne = 12;
#elif defined(MOELA_SIMD_NEON)
constexpr int kMlaRows = 6, kMlaVecs = 4, kMlaRowsOfOne = 12;
#else
constexpr int kMlaRows = 2, kMlaVecs = 4, kMlaRowsOfOne = 2;
#endif
static_assert(kMlaTokens % kMlaRows == 0 && kMlaTokens % kMlaRowsOfOne == 0, "tiles of tokens would overlap");
constexpr int kMlaCols = kMlaVecs * kLanes;

// Fetches rows into L2, a line at most with every step: many at a time would take all of the core's buffers
// for lines, and multiply-adds behind them would wait.
class MlaPrefetcher {
 public:
  MlaPrefetcher(const uint8_t* const* rows, int64_t count, int64_t row_bytes)
      : row_(rows), end_(rows + count), row_bytes_(row_bytes) {}

  // What is left takes `steps` steps, or more where these are too few.
  void spread(int64_t steps) {
    const int64_t bytes = (end_ - row_) * row_bytes_ / steps + 1;
    step_ = bytes < kLine ? bytes : kLine;
  }

  MOELA_INLINE void step() {
    if (row_ == end_) return;
    prefetch_l2(*row_ + at_);
    at_ += step_;
    if (at_ < row_bytes_) return;
    at_ = 0;
    ++row_;
  }

 private:
  static constexpr int64_t kLine = 64;
  const uint8_t *const *row_, *const *end_;
  int64_t row_bytes_, step_ = kLine, at_ = 0;
};
constexpr int kMlaColumnsOfStep = 4;  // that scores are summed over between two steps of a prefetcher

// scores[kRows tokens][kVecs vectors of rows of q] over `panels` panels; with `add_to` they are added to. The
// rows are [column][16], sixteen after sixteen `block` apart.
// Without the pin gcc 12 loads q again for every token.
template <int kRows, int kVecs>
__attribute__((noinline)) void score_tile(const float* keys, const float* q, int64_t block, int64_t panels,
                                          bool add_to, float* scores, int64_t ld, MlaPrefetcher& next) {
  MlaPrefetcher ahead = next;  // in registers
  F acc[kRows][kVecs];
#pragma GCC unroll 32
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) acc[m][v] = zero();
  for (int64_t p = 0; p < panels; ++p, keys += kMlaPanelFloats)
    for (int k = 0; k < kMlaPanel; k += kMlaColumnsOfStep) {
      ahead.step();
#pragma GCC unroll 4
      for (int i = 0; i < kMlaColumnsOfStep; ++i, q += kMlaPanel) {
        F x[kVecs];
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) {
          x[v] = load(q + v * kLanes / kMlaPanel * block + v * kLanes % kMlaPanel);
          pin(x[v]);
        }
#pragma GCC unroll 32
        for (int m = 0; m < kRows; ++m) {
          const F key = set1(keys[m * kMlaPanel + k + i]);
#pragma GCC unroll 4
          for (int v = 0; v < kVecs; ++v) acc[m][v] = fma(key, x[v], acc[m][v]);
        }
      }
    }
#pragma GCC unroll 32
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      float* to = scores + m * ld + v * kLanes;
      store(to, add_to ? add(load(to), acc[m][v]) : acc[m][v]);
    }
  next = ahead;
}

// The scores of kVecs vectors of rows of q.
template <int kRows, int kVecs>
void scores_of_rows(const float* panels, int64_t num_panels, const float* q, int64_t block, int64_t tokens,
                    float* scores, int64_t ld, MlaPrefetcher& next) {
  for (int64_t p = 0; p < num_panels; p += kMlaChain) {
    const int64_t count = num_panels - p < kMlaChain ? num_panels - p : kMlaChain;
    const float* keys = panels + p * kMlaPanelFloats;
    for (int64_t t = 0; t < tokens; t += kRows)
      score_tile<kRows, kVecs>(keys + t * kMlaPanel, q + p * kMlaPanel * kMlaPanel, block, count, p > 0,
                               scores + t * ld, ld, next);
  }
}

// sums[kRows heads][kMlaCols] = sums * rescale[head] + sum over tokens of weights[token][head] * values.
template <int kRows>
__attribute__((noinline)) void value_tile(const float* weights, int64_t ldw, const float* values,
                                          int64_t tokens, const float* rescale, float* sums, int64_t ld,
                                          MlaPrefetcher& next) {
  MlaPrefetcher ahead = next;  // in registers
  F acc[kRows][kMlaVecs];
#pragma GCC unroll 32
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < kMlaVecs; ++v) acc[m][v] = zero();
  for (int64_t t = 0; t < tokens; ++t, weights += ldw, values += kMlaPanel) {
    ahead.step();
    F x[kMlaVecs];
#pragma GCC unroll 4
    for (int v = 0; v < kMlaVecs; ++v) {
      const int column = v * kLanes;
      x[v] = load(values + column / kMlaPanel * kMlaPanelFloats + column % kMlaPanel);
      pin(x[v]);
    }
#pragma GCC unroll 32
    for (int m = 0; m < kRows; ++m) {
      const F weight = set1(weights[m]);
#pragma GCC unroll 4
      for (int v = 0; v < kMlaVecs; ++v) acc[m][v] = fma(weight, x[v], acc[m][v]);
    }
  }
#pragma GCC unroll 32
  for (int m = 0; m < kRows; ++m) {
    const F factor = set1(rescale[m]);
#pragma GCC unroll 4
    for (int v = 0; v < kMlaVecs; ++v) {
      float* to = sums + m * ld + v * kLanes;
      store(to, fma(load(to), factor, acc[m][v]));
    }
  }
  next = ahead;
}

using ValueTile = void (*)(const float*, int64_t, const float*, int64_t, const float*, float*, int64_t,
                           MlaPrefetcher&);

template <int kRows = kMlaRows>
ValueTile value_tile_for(int64_t rows) {
  if constexpr (kRows == 1) {
    return value_tile<1>;
  } else {
    return rows >= kRows ? value_tile<kRows> : value_tile_for<kRows - 1>(rows);
  }
}

}  // namespace
