// Scores of experts: the sequences of float32 operations that python/moela/reference/moe_topk.py defines, in
// loops that the compiler vectorizes. No library function, no fused multiply-add.
#pragma once

#include "cpu/convert.h"
#include "cpu/moe_topk.h"
#include "cpu/simd.h"

namespace {

// The definition's constants: the float32 next to a float64 quotient.
constexpr float over(int n) { return static_cast<float>(1. / n); }
constexpr float kExpTerms[] = {over(5040), over(720), over(120), over(24), over(6), over(2), 1.f, 1.f};
constexpr float kAtanhTerms[] = {over(15), over(13), over(11), over(9), over(7), over(5), over(3), 1.f};

inline float horner(const float (&terms)[8], float x) {
  float p = terms[0];
#pragma GCC unroll 8
  for (int i = 1; i < 8; ++i) p = p * x + terms[i];
  return p;
}

// e^t for t <= 0, which as integers are in the opposite order. A choice between floats would be a branch, and
// with AVX2 the loops would not be vectorized.
inline float exp_nonpositive(float t) {
  constexpr float kMagic = 0x1.8p23f;
  constexpr float kLog2e = 1.44269504f, kLn2High = 355.f / 512.f, kLn2Low = -2.12194440e-4f;
  const uint32_t least = bits_of(-104.f), bits = bits_of(t);
  const float clamped = float_of(bits > least ? least : bits);
  const float shifted = clamped * kLog2e + kMagic;
  const float n = shifted - kMagic;
  const float r = (clamped - n * kLn2High) - n * kLn2Low;
  const auto whole = static_cast<int32_t>(bits_of(shifted) - bits_of(kMagic));
  const int32_t half = whole >> 1;
  return horner(kExpTerms, r) * float_of(static_cast<uint32_t>(half + 127) << 23) *
         float_of(static_cast<uint32_t>(whole - half + 127) << 23);
}

inline float absolute(float x) { return float_of(bits_of(x) & 0x7FFFFFFF); }

// All ones where x is negative, -0 too.
inline uint32_t sign_mask(float x) { return static_cast<uint32_t>(static_cast<int32_t>(bits_of(x)) >> 31); }

// score[i] of x[i], of which none is NaN and the largest is `most`: for softmax a finite one.
inline void scores_of(const float* x, int64_t E, moela::cpu::Scoring scoring, float most, float* score) {
  switch (scoring) {
    case moela::cpu::Scoring::kSoftmax: {
      for (int64_t i = 0; i < E; ++i) score[i] = exp_nonpositive(x[i] - most);
      int64_t total = 0;  // in units of 2^-40: exact, so the order of this sum is the compiler's
      for (int64_t i = 0; i < E; ++i) total += static_cast<int64_t>(score[i] * 0x1p40f);
      const float sum = static_cast<float>(total) * 0x1p-40f;
      for (int64_t i = 0; i < E; ++i) score[i] /= sum;
      return;
    }
    case moela::cpu::Scoring::kSigmoid:
      for (int64_t i = 0; i < E; ++i) {
        const float e = exp_nonpositive(-absolute(x[i]));
        const uint32_t is_negative = sign_mask(x[i]);
        score[i] = float_of((bits_of(e) & is_negative) | (bits_of(1.f) & ~is_negative)) / (e + 1.f);
      }
      return;
    case moela::cpu::Scoring::kSqrtSoftplus:
      for (int64_t i = 0; i < E; ++i) {
        const float e = exp_nonpositive(-absolute(x[i]));
        const float q = (e + e) / (e + 2.f);
        const float log1p = q * horner(kAtanhTerms, q * q * 0.25f);
        score[i] = __builtin_sqrtf(float_of(bits_of(x[i]) & ~sign_mask(x[i])) + log1p);
      }
      return;
  }
}

}  // namespace
