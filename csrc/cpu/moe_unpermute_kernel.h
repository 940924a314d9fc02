// moe_unpermute on the CPU. Bound: the memory rate of reads.
#pragma once

#include "cpu/convert.h"
#include "cpu/moe_unpermute.h"
#include "cpu/simd.h"

namespace {

// Whole rows of most models: a row is on pages of its own, and to come back to it costs a walk of the page
// table. The sum of so many columns stays in L2, if not in L1.
constexpr int64_t kUnpermutePiece = 8192;
// Rows that are added at a time: the sum is read and written once for all of them, and their loads overlap.
constexpr int kUnpermuteRows = 8;

// sum += weights[r] * y[rows[r] + i], one r after the other, product and sum rounded separately.
template <int kRows, class T, class ToFloat>
inline void add_rows(const T* y, const int64_t* rows, const float* weights, int64_t n, float* sum,
                     ToFloat to_float) {
  for (int64_t i = 0; i < n; ++i) {
    float s = sum[i];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) s += weights[r] * to_float(y[rows[r] + i]);
    sum[i] = s;
  }
}

template <int kRows>
inline void add_rows(const void* y, Dtype dtype, const int64_t* rows, const float* weights, int64_t n,
                     float* sum) {
  const auto* halves = static_cast<const uint16_t*>(y);
  if (dtype == Dtype::kFloat32)
    add_rows<kRows>(static_cast<const float*>(y), rows, weights, n, sum, [](float x) { return x; });
  else if (dtype == Dtype::kBFloat16)
    add_rows<kRows>(halves, rows, weights, n, sum, [](uint16_t x) { return from_bfloat16(x); });
  else
    add_rows<kRows>(halves, rows, weights, n, sum, [](uint16_t x) { return from_float16(x); });
}

// Columns h .. h + n of token t.
inline void sum_of_token(const moela::cpu::MoeUnpermuteParams& p, int64_t t, int64_t h, int64_t n,
                         float* sum) {
  for (int64_t i = 0; i < n; ++i) sum[i] = 0.f;
  int64_t rows[kUnpermuteRows];  // where the rows that wait to be added begin in y
  float weights[kUnpermuteRows];
  int count = 0;
  for (int64_t slot = 0; slot < p.topk; ++slot) {
    const int64_t row = p.inverse[t * p.ldi + slot];
    if (row < 0 || row >= p.R) continue;
    rows[count] = row * p.ldy + h;
    weights[count++] = p.weights == nullptr ? 1.f : p.weights[t * p.ldw + slot];
    if (count < kUnpermuteRows) continue;
    add_rows<kUnpermuteRows>(p.y, p.dtype, rows, weights, n, sum);
    count = 0;
  }
  const int fours = count & 4, twos = fours + (count & 2);
  if (count & 4) add_rows<4>(p.y, p.dtype, rows, weights, n, sum);
  if (count & 2) add_rows<2>(p.y, p.dtype, rows + fours, weights + fours, n, sum);
  if (count & 1) add_rows<1>(p.y, p.dtype, rows + twos, weights + twos, n, sum);
}

void moe_unpermute(const moela::cpu::MoeUnpermuteParams& p, int64_t begin, int64_t end) {
  [[maybe_unused]] const ExactSubnormals guard;
  alignas(64) float sum[kUnpermutePiece];
  for (int64_t t = begin; t < end; ++t) {
    for (int64_t h = 0; h < p.H; h += kUnpermutePiece) {
      const int64_t n = p.H - h < kUnpermutePiece ? p.H - h : kUnpermutePiece;
      sum_of_token(p, t, h, n, sum);
      store_floats(sum, n, p.dtype, p.out, t * p.H + h);
    }
  }
}

}  // namespace
