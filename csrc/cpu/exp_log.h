// e^t and log(1 + e) in float32 operations that round the same way on every instruction set: no library
// function, no fused multiply-add. Defined by python/moela/reference/moe_topk.py.
#pragma once

#include "cpu/convert.h"

namespace {

// The float32 next to a float64 quotient.
constexpr float over(int n) { return static_cast<float>(1. / n); }
constexpr float kExpTerms[] = {over(5040), over(720), over(120), over(24), over(6), over(2), 1.f, 1.f};
constexpr float kAtanhTerms[] = {over(15), over(13), over(11), over(9), over(7), over(5), over(3), 1.f};

inline float horner(const float (&terms)[8], float x) {
  float p = terms[0];
#pragma GCC unroll 8
  for (int i = 1; i < 8; ++i) p = p * x + terms[i];
  return p;
}

// e^t for t <= 0, which as integers are in the opposite order, with a relative error below 4 * 2^-24 (see
// exp_of in swiglu_kernel.h); NaN stays. A choice between floats would be a branch, and with AVX2 the loops
// would not be vectorized.
inline float exp_nonpositive(float t) {
  constexpr float kMagic = 0x1.8p23f;
  constexpr float kLog2e = 1.44269504f, kLn2High = 355.f / 512.f, kLn2Low = -2.12194440e-4f;
  const uint32_t least = bits_of(-104.f), bits = bits_of(t);
  const uint32_t is_less = 0u - static_cast<uint32_t>((bits > least) & (bits <= 0xFF800000));
  const float clamped = float_of((least & is_less) | (bits & ~is_less));
  const float shifted = clamped * kLog2e + kMagic;
  const float n = shifted - kMagic;
  const float r = (clamped - n * kLn2High) - n * kLn2Low;
  const auto whole = static_cast<int32_t>(bits_of(shifted) - bits_of(kMagic));
  const int32_t half = whole >> 1;
  return horner(kExpTerms, r) * float_of(static_cast<uint32_t>(half + 127) << 23) *
         float_of(static_cast<uint32_t>(whole - half + 127) << 23);
}

// log(1 + e) for 0 <= e <= 1, as 2 atanh(e / (2 + e)).
inline float log1p_of_unit(float e) {
  const float q = (e + e) / (e + 2.f);
  return q * horner(kAtanhTerms, q * q * 0.25f);
}

// log(x) for a normal x > 0; NaN stays. x = 2^n f with f from sqrt(1/2) on, log f = 2 atanh((f - 1) / (f +
// 1)).
inline float log_of(float x) {
  constexpr float kLn2High = 355.f / 512.f, kLn2Low = -2.12194440e-4f;
  constexpr uint32_t kRootOfHalf = 0x3F3504F3;
  const auto n = static_cast<int32_t>(bits_of(x) - kRootOfHalf) >> 23;
  const float f = float_of(bits_of(x) - (static_cast<uint32_t>(n) << 23));
  const float q = (f - 1.f) * 2.f / (f + 1.f);
  const auto whole = static_cast<float>(n);
  const float log = whole * kLn2High + (whole * kLn2Low + q * horner(kAtanhTerms, q * q * 0.25f));
  return x != x ? x : log;
}

inline float absolute(float x) { return float_of(bits_of(x) & 0x7FFFFFFF); }

}  // namespace
