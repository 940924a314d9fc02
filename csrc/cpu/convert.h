// Scalar conversions between float32 and the narrow types, exact or rounded once to nearest even.
//
// In an anonymous namespace for the reason given in simd.h. Written without branches where the compiler can
// then vectorize the loops that call them.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"

namespace {

using moela::cpu::Dtype;

inline uint32_t bits_of(float x) { return __builtin_bit_cast(uint32_t, x); }
inline float float_of(uint32_t bits) { return __builtin_bit_cast(float, bits); }

inline float from_bfloat16(uint16_t x) { return float_of(static_cast<uint32_t>(x) << 16); }

inline uint16_t to_bfloat16(float x) {
  const uint32_t u = bits_of(x);
  const uint32_t rounded = (u + 0x7FFF + (u >> 16 & 1)) >> 16;
  return static_cast<uint16_t>((u & 0x7FFFFFFF) > 0x7F800000 ? 0x7FC0 : rounded);
}

inline float from_float16(uint16_t x) {
  // Exponent and fraction moved into place have a bias that is 112 too small; multiplying by 2^112 is exact,
  // for subnormals too. Inf and NaN keep the largest exponent.
  const uint32_t magnitude = static_cast<uint32_t>(x & 0x7FFF) << 13;
  const uint32_t finite = bits_of(float_of(magnitude) * 0x1p112f);
  const uint32_t special = magnitude | 0x7F800000;
  return float_of((static_cast<uint32_t>(x) << 16 & 0x80000000) |
                  ((x & 0x7C00) == 0x7C00 ? special : finite));
}

inline uint16_t to_float16(float x) {
  const uint32_t u = bits_of(x), sign = u >> 16 & 0x8000, magnitude = u & 0x7FFFFFFF;
  if (magnitude > 0x7F800000) return 0x7E00;
  if (magnitude >= 0x477FF000) return static_cast<uint16_t>(sign | 0x7C00);  // rounds to 65536 or more
  if (magnitude < 0x38800000) {
    // Below 2^-14 the result has a fixed grid of 2^-24: adding 0.5 puts that grid at the end of the fraction.
    const uint32_t fraction = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
    return static_cast<uint16_t>(sign | fraction);
  }
  const uint32_t rebias = magnitude - (112u << 23);
  return static_cast<uint16_t>(sign | ((rebias + 0xFFF + (rebias >> 13 & 1)) >> 13));
}

inline float from_e4m3(uint8_t code) {
  const uint32_t magnitude = code & 0x7F;
  const float value = float_of(magnitude << 20) * 0x1p120f;  // as decode_tiny in simd.h
  const uint32_t bits = magnitude == 0x7F ? 0x7FC00000 : bits_of(value);
  return float_of(bits | static_cast<uint32_t>(code & 0x80) << 24);
}

// Nearest even, clamped to +-448; NaN gives the code 0x7F.
inline uint8_t to_e4m3(float x) {
  const uint32_t u = bits_of(x), sign = u >> 24 & 0x80, magnitude = u & 0x7FFFFFFF;
  // From 2^-6 on: round to 3 fraction bits and rebias by 120. Below, the grid is 2^-9: adding 2^14 puts it at
  // the end of the fraction of a float32.
  const uint32_t normal = (magnitude + 0x7FFFF + (magnitude >> 20 & 1)) / (1u << 20) - (120u << 3);
  const uint32_t subnormal = bits_of(float_of(magnitude) + 0x1p14f) - bits_of(0x1p14f);
  const uint32_t finite = magnitude < 0x3C800000 ? subnormal : normal;
  const uint32_t clamped = magnitude > 0x43E00000 ? 0x7E : finite;
  return static_cast<uint8_t>(magnitude > 0x7F800000 ? 0x7F : sign | clamped);
}

inline float from_e8m0(uint8_t code) {
  // 2^(code - 127); code 0 is 2^-127, a subnormal float32; code 255 is NaN.
  return float_of(code == 255 ? 0x7FC00000 : code == 0 ? 0x00400000 : static_cast<uint32_t>(code) << 23);
}

inline float load_float(const void* p, Dtype dtype, int64_t i) {
  switch (dtype) {
    case Dtype::kFloat32: return static_cast<const float*>(p)[i];
    case Dtype::kBFloat16: return from_bfloat16(static_cast<const uint16_t*>(p)[i]);
    case Dtype::kFloat16: return from_float16(static_cast<const uint16_t*>(p)[i]);
    case Dtype::kE4m3: return from_e4m3(static_cast<const uint8_t*>(p)[i]);
    case Dtype::kE8m0: return from_e8m0(static_cast<const uint8_t*>(p)[i]);
  }
  __builtin_unreachable();
}

// Converts `n` elements starting at element `i` of p: one loop per type, so that each is vectorized.
inline void load_floats(const void* p, Dtype dtype, int64_t i, int64_t n, float* out) {
  switch (dtype) {
    case Dtype::kFloat32:
      for (int64_t k = 0; k < n; ++k) out[k] = static_cast<const float*>(p)[i + k];
      return;
    case Dtype::kBFloat16:
      for (int64_t k = 0; k < n; ++k) out[k] = from_bfloat16(static_cast<const uint16_t*>(p)[i + k]);
      return;
    case Dtype::kFloat16:
      for (int64_t k = 0; k < n; ++k) out[k] = from_float16(static_cast<const uint16_t*>(p)[i + k]);
      return;
    case Dtype::kE4m3:
      for (int64_t k = 0; k < n; ++k) out[k] = from_e4m3(static_cast<const uint8_t*>(p)[i + k]);
      return;
    case Dtype::kE8m0:
      for (int64_t k = 0; k < n; ++k) out[k] = from_e8m0(static_cast<const uint8_t*>(p)[i + k]);
      return;
  }
}

inline void store_floats(const float* in, int64_t n, Dtype dtype, void* p, int64_t i) {
  switch (dtype) {
    case Dtype::kFloat32:
      for (int64_t k = 0; k < n; ++k) static_cast<float*>(p)[i + k] = in[k];
      return;
    case Dtype::kBFloat16:
      for (int64_t k = 0; k < n; ++k) static_cast<uint16_t*>(p)[i + k] = to_bfloat16(in[k]);
      return;
    case Dtype::kFloat16:
      for (int64_t k = 0; k < n; ++k) static_cast<uint16_t*>(p)[i + k] = to_float16(in[k]);
      return;
    case Dtype::kE4m3:
      for (int64_t k = 0; k < n; ++k) static_cast<uint8_t*>(p)[i + k] = to_e4m3(in[k]);
      return;
    case Dtype::kE8m0: __builtin_unreachable();
  }
}

}  // namespace
