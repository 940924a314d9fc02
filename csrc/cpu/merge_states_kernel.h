// merge_states on the CPU. Bound: the memory rate.
#pragma once

#include "cpu/exp_log.h"
#include "cpu/merge_states.h"
#include "cpu/simd.h"

namespace {

// out = a * out_a + b * out_b; `lse` is that of both.
struct StateWeights {
  float a, b, lse;
};

// Of two states, none of them without keys.
inline StateWeights weights_of_states(float lse_a, float lse_b) {
  // NaN and +Inf, which no attention gives.
  if (!(lse_a < __builtin_inff() && lse_b < __builtin_inff())) {
    const float nan = __builtin_nanf("");
    return {nan, nan, nan};
  }
  const float e = exp_nonpositive(-absolute(lse_a - lse_b));
  const float larger = 1.f / (1.f + e), smaller = e / (1.f + e);
  if (lse_a > lse_b) return {larger, smaller, lse_a + log1p_of_unit(e)};
  return {smaller, larger, lse_b + log1p_of_unit(e)};
}

// Products and sums are rounded separately, so that a and b may change places.
inline void merge_rows(const moela::cpu::MergeStatesParams& p, int64_t row, StateWeights w) {
  constexpr int64_t kPiece = 512;
  alignas(64) float a[kPiece], b[kPiece];
  for (int64_t i = 0; i < p.D; i += kPiece) {
    const int64_t n = p.D - i < kPiece ? p.D - i : kPiece;
    load_floats(p.out_a, p.dtype, row * p.ld_a + i, n, a);
    load_floats(p.out_b, p.dtype, row * p.ld_b + i, n, b);
    for (int64_t k = 0; k < n; ++k) a[k] = w.a * a[k] + w.b * b[k];
    store_floats(a, n, p.dtype, p.out, row * p.D + i);
  }
}

void merge_states(const moela::cpu::MergeStatesParams& p, int64_t begin, int64_t end) {
  [[maybe_unused]] const ExactSubnormals guard;
  constexpr float kEmpty = -__builtin_inff();
  const int64_t row_bytes = p.D * size_of(p.dtype);
  const auto row_of = [&](const void* states, int64_t at) {
    return static_cast<const char*>(states) + at * size_of(p.dtype);
  };
  for (int64_t row = begin; row < end; ++row) {
    const float lse_a = p.lse_a[row * p.stride_a], lse_b = p.lse_b[row * p.stride_b];
    char* out = static_cast<char*>(p.out) + row * row_bytes;
    const bool one_is_empty = (lse_a == kEmpty && lse_b < -kEmpty) || (lse_b == kEmpty && lse_a < -kEmpty);
    if (!one_is_empty) {
      const StateWeights w = weights_of_states(lse_a, lse_b);
      merge_rows(p, row, w);
      p.lse[row] = w.lse;
      continue;
    }
    // The other one, if it has keys, stays as it is.
    p.lse[row] = lse_a != kEmpty ? lse_a : lse_b;
    if (lse_a != kEmpty)
      __builtin_memcpy(out, row_of(p.out_a, row * p.ld_a), row_bytes);
    else if (lse_b != kEmpty)
      __builtin_memcpy(out, row_of(p.out_b, row * p.ld_b), row_bytes);
    else
      __builtin_memset(out, 0, row_bytes);
  }
}

}  // namespace
