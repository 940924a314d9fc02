// The scale factor of a group of values, and the cast that uses it. Shared by the quantizing ops.
#pragma once

#include "cpu/convert.h"
#include "cpu/simd.h"

namespace {

// Bits of max |x|. As integers NaN is above Inf is above every finite number, so NaN wins, as in torch.amax.
inline uint32_t amax_bits(const float* x, int64_t n, uint32_t amax) {
  for (int64_t k = 0; k < n; ++k) {
    const uint32_t magnitude = bits_of(x[k]) & 0x7FFFFFFF;
    amax = magnitude > amax ? magnitude : amax;
  }
  return amax;
}

inline float scale_factor(uint32_t amax, bool ue8m0) {
  const float exact = float_of(amax) / 448.f;
  const float sf = exact < 0x1p-126f ? 0x1p-126f : exact;  // false for NaN, which stays
  const uint32_t u = bits_of(sf);
  if (!ue8m0 || u >= 0x7F800000) return sf;
  return float_of((u + 0x7FFFFF) & 0x7F800000);  // up to a power of two; one that is stays
}

inline void quantize(const float* x, int64_t n, float sf, uint8_t* q) {
  for (int64_t k = 0; k < n; ++k) q[k] = to_e4m3(x[k] / sf);
}

}  // namespace
