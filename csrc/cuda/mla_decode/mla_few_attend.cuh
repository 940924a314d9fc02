// Attention with the rows as the right operand: products have keys, or columns of values, from above to
// below, and rows from left to right. One warpgroup holds the sums of all columns.
#pragma once

#include <utility>

#include "cuda/mla_decode/mla_attend.cuh"
#include "cuda/mla_decode/mla_few_params.cuh"

namespace moela::cuda::sm90 {

// Register i of a thread's [64][kRows] is of this one of the thread's rows, whose place in the tile is
// few_row().
constexpr int few_row_of(int i) { return i / 4 * 2 + i % 2; }
MOELA_DEVICE int few_row(int r) { return r / 2 * 8 + 2 * (lane() % 4) + r % 2; }
// And of this key of a block, or column of a panel.
MOELA_DEVICE int few_place(int i) { return warp() * 16 + lane() / 4 + 8 * (i / 2 % 2); }

MOELA_DEVICE void few_sync() { bar_sync<1>(128); }

// Of each of a thread's rows, what all keys say: those of eight lanes of each warp, and then of four warps.
// With one few_sync() before it returns; smem_exchange may be used again behind another.
template <class C, class Combine>
MOELA_DEVICE void combine_keys(float (&x)[C::kRowsOfThread], const Combine& combine) {
  const SmemAddr exchange = smem_base() + C::kSmemExchange;
  const auto of_warp = static_cast<uint32_t>(warp() * 4);  // with a shuffle: not where lanes part
  MOELA_UNROLL
  for (int r = 0; r < C::kRowsOfThread; ++r) {
    MOELA_UNROLL
    for (int mask = 4; mask < 32; mask *= 2) x[r] = combine(x[r], shfl_xor(x[r], mask));
    if (lane() < 4) sts(exchange + static_cast<uint32_t>(few_row(r) * 16) + of_warp, x[r]);
  }
  few_sync();
  MOELA_UNROLL
  for (int r = 0; r < C::kRowsOfThread; ++r) {
    const auto v = lds<Vec4>(exchange + static_cast<uint32_t>(few_row(r) * 16));
    x[r] = combine(combine(float_of(v.x), float_of(v.y)), combine(float_of(v.z), float_of(v.w)));
  }
}

// Softmax (block/softmax.cuh) of scores whose rows lie across lanes and warps.
template <class C>
struct MlaFewSoftmax {
  float max[C::kRowsOfThread], sum[C::kRowsOfThread];  // sum: of this thread's keys, relative to 2^max

  MOELA_DEVICE MlaFewSoftmax() {
    MOELA_UNROLL
    for (int r = 0; r < C::kRowsOfThread; ++r) {
      max[r] = -kInfinity;
      sum[r] = 0.f;
    }
  }

  // As Softmax::weigh(), with a few_sync().
  MOELA_DEVICE void weigh(Acc<C::kRows>& scores, float (&rescale)[C::kRowsOfThread]) {
    float largest[C::kRowsOfThread], base[C::kRowsOfThread];
    MOELA_UNROLL
    for (int r = 0; r < C::kRowsOfThread; ++r) largest[r] = max[r];
    MOELA_UNROLL
    for (int i = 0; i < C::kRows / 2; ++i)
      largest[few_row_of(i)] = fmaxf(largest[few_row_of(i)], scores.get(i));
    combine_keys<C>(largest, [](float x, float y) { return fmaxf(x, y); });
    MOELA_UNROLL
    for (int r = 0; r < C::kRowsOfThread; ++r) {
      base[r] = largest[r] == -kInfinity ? 0.f : largest[r];
      rescale[r] = ex2_approx(max[r] - base[r]);
      max[r] = largest[r];
      sum[r] *= rescale[r];
    }
    MOELA_UNROLL
    for (int i = 0; i < C::kRows / 2; ++i) {
      const float weight = ex2_approx(scores.get(i) - base[few_row_of(i)]);
      scores.set(i, weight);
      sum[few_row_of(i)] += weight;
    }
  }

  // As Softmax::finish(), with a few_sync().
  MOELA_DEVICE void finish() {
    combine_keys<C>(sum, [](float x, float y) { return x + y; });
  }
};

// [64][kRows] of a warpgroup, value(i) in register i, as 16-bit floats to a panel [kRows][64].
template <class C, class Value>
MOELA_DEVICE void store_transposed(SmemAddr panel, const Value& value) {
  MOELA_UNROLL
  for (int j = 0; j < C::kRows / 16; ++j) {
    uint32_t r[4];
    MOELA_UNROLL
    for (int m = 0; m < 4; ++m)
      r[m] = rounded_pair<C::kFloat>(value(8 * j + 2 * m), value(8 * j + 2 * m + 1));
    const int row = 16 * j + lane() / 16 * 8 + lane() % 8, place = warp() * 16 + lane() / 8 % 2 * 8;
    stmatrix<4, true>(panel + panel_byte(row, place * 2), r);
  }
}

template <class C>
MOELA_DEVICE SmemAddr few_keys(int stage) {
  return smem_base() + C::kSmemKv + static_cast<uint32_t>(stage) * C::kTileBytes;
}

// Scores: keys times rows.
template <class C>
MOELA_DEVICE void multiply_few_keys(Acc<C::kRows>& scores, int stage) {
  const uint64_t k = make_descriptor(few_keys<C>(stage), 0, 1024, OperandLayout::k128B);
  const uint64_t q = make_descriptor(smem_base() + C::kSmemQ, 0, 1024, OperandLayout::k128B);
  wgmma_fence(scores);
  MOELA_UNROLL
  for (uint32_t panel = 0; panel < C::kPanels; ++panel) {
    MOELA_UNROLL
    for (uint32_t step = 0; step < 4; ++step)
      multiply<C, false, false>(scores, advance_descriptor(k, panel * C::kPanelBytes + step * 32),
                                advance_descriptor(q, panel * C::kRowPanelBytes + step * 32),
                                panel > 0 || step > 0);
  }
  wgmma_commit();
  wgmma_wait<0>(scores);
}

// The sums of a tile: of each panel of the values' columns [64][kRows].
template <class C>
struct MlaFewSums {
  Acc<C::kRows> panels[C::kValuePanels];

  MOELA_DEVICE void clear() {
    MOELA_UNROLL
    for (Acc<C::kRows>& panel : panels) {
      MOELA_UNROLL
      for (int i = 0; i < C::kRows / 2; ++i) panel.set(i, 0.f);
    }
  }
  // A maximum that has not grown, as in most blocks but the first few, leaves a factor of 1.
  MOELA_DEVICE void rescale(const float (&factor)[C::kRowsOfThread]) {
    bool grows = false;
    MOELA_UNROLL
    for (int r = 0; r < C::kRowsOfThread; ++r) grows = grows || factor[r] != 1.f;
    if (vote_ballot(grows) == 0) return;
    MOELA_UNROLL
    for (Acc<C::kRows>& panel : panels) {
      MOELA_UNROLL
      for (int i = 0; i < C::kRows / 2; ++i) panel.set(i, panel.get(i) * factor[few_row_of(i)]);
    }
  }

  // sums += values x weights. Products that follow each other have different sums.
  MOELA_DEVICE void multiply_values(int stage) {
    multiply_values(stage, std::make_index_sequence<C::kValuePanels>());
  }

 private:
  template <size_t... kPanel>
  MOELA_DEVICE void multiply_values(int stage, std::index_sequence<kPanel...>) {
    const uint64_t v = make_descriptor(few_keys<C>(stage), C::kPanelBytes, 1024, OperandLayout::k128B);
    const uint64_t p = make_descriptor(smem_base() + C::kSmemP, 0, 1024, OperandLayout::k128B);
    wgmma_fence(panels[kPanel]...);
    MOELA_UNROLL
    for (uint32_t step = 0; step < 4; ++step)
      (multiply<C, true, false>(panels[kPanel],
                                advance_descriptor(v, kPanel * C::kPanelBytes + step * 16 * 128),
                                advance_descriptor(p, step * 32), true),
       ...);
    wgmma_commit();
    wgmma_wait<0>(panels[kPanel]...);
  }
};

}  // namespace moela::cuda::sm90
