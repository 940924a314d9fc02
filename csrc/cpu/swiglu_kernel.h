// The gated activation on the CPU, in operations that round the same way on every instruction set: additions,
// products and quotients that the compiler vectorizes, no library function, no fused multiply-add.
#pragma once

#include "cpu/convert.h"
#include "cpu/simd.h"
#include "cpu/swiglu.h"

namespace {

// a where `is` else b, by a mask: gcc makes branches of two clamps in a row, and the loop six times slower.
inline float select(bool is, uint32_t a, uint32_t b) {
  const uint32_t mask = 0u - static_cast<uint32_t>(is);
  return float_of((a & mask) | (b & ~mask));
}

// min(x, limit) for a limit above 0, max(x, limit) for one below. NaN stays. As integers positive floats are
// in order, and negative ones in the opposite order.
inline float at_most(float x, float limit) {
  const auto b = static_cast<int32_t>(bits_of(x)), l = static_cast<int32_t>(bits_of(limit));
  return select((b > l) & (b <= 0x7F800000), bits_of(limit), bits_of(x));
}
inline float at_least(float x, float limit) {
  const uint32_t b = bits_of(x), l = bits_of(limit);
  return select((b > l) & (b <= 0xFF800000), l, b);
}

// e^x with a relative error below 4 * 2^-24; Inf from 88.73 on, 1.6e-38 below -87 (who calls adds 1); NaN
// stays.
//
// x = n ln 2 + r, |r| <= 0.347. n ln 2 is subtracted in two parts: 355/512 times n is exact, and so is that
// subtraction; the rest costs 2^-26 of rounding and twice 2^-29. In units of 2^-24: 0.3 for r, 0.1 for the
// first omitted term r^8 / 8!, for the last addition 1 / 0.7, and 0.35 / 0.7 per rounding of what r
// multiplies, of which three count: 3.3. (1.7 is the most among every seventh float32.)
inline float exp_of(float x) {
  constexpr float kMagic = 0x1.8p23f;  // adding it rounds to an integer, which is then in the low bits
  constexpr float kLog2e = 0x1.715476p0f, kLn2High = 355.f / 512.f, kLn2Low = -2.12194440e-4f;
  const float clamped = at_least(at_most(x, 90.f), -87.f);
  const float shifted = clamped * kLog2e + kMagic;
  const float n = shifted - kMagic;
  const float r = (clamped - n * kLn2High) - n * kLn2Low;
  float p = 1.f / 5040.f;
  p = p * r + 1.f / 720.f;
  p = p * r + 1.f / 120.f;
  p = p * r + 1.f / 24.f;
  p = p * r + 1.f / 6.f;
  p = p * r + 0.5f;
  p = p * r + 1.f;
  p = p * r + 1.f;
  // 2^n in two factors: n goes up to 130, where the result is Inf.
  const uint32_t whole = bits_of(shifted) - bits_of(kMagic) + 128;  // n + 128 >= 0
  const uint32_t half = whole / 2;
  return p * float_of((half - 64 + 127) << 23) * float_of((whole - half - 64 + 127) << 23);
}

inline float swiglu(float gate, float up, moela::cpu::Swiglu a) {
  const float g = at_most(gate, a.limit), u = at_least(at_most(up, a.limit), -a.limit);
  return g / (1.f + exp_of(-(a.alpha * g))) * (u + a.shift);
}

// Columns k .. k + n of one row, whose gates start at element `row` of x and whose ups K later; n <= kPiece.
constexpr int64_t kSwigluPiece = 512;
inline void load_swiglu(const void* x, Dtype dtype, int64_t row, int64_t K, int64_t k, int64_t n,
                        moela::cpu::Swiglu a, float* y) {
  alignas(64) float up[kSwigluPiece];
  load_floats(x, dtype, row + k, n, y);
  load_floats(x, dtype, row + K + k, n, up);
  for (int64_t i = 0; i < n; ++i) y[i] = swiglu(y[i], up[i], a);
}

}  // namespace
