// Number formats, bit by bit.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "emu/run.h"

namespace moela::emu {

inline float float_of_bf16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

inline float float_of_f16(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  float x;
  if (exponent == 31) {
    x = fraction ? std::bit_cast<float>(0x7FC00000u) : INFINITY;
  } else {
    x = exponent ? std::ldexp(1024.f + static_cast<float>(fraction), exponent - 25)
                 : std::ldexp(static_cast<float>(fraction), -24);
  }
  return bits & 0x8000 ? -x : x;
}

// Nearest even, NaN -> the canonical one.
inline uint16_t bf16_of_float(float x) {
  if (x != x) return 0x7FFF;
  const auto u = std::bit_cast<uint32_t>(x);
  return static_cast<uint16_t>((u + 0x7FFF + (u >> 16 & 1)) >> 16);
}

// Rounds |x| to a format with `fraction_bits` and exponent bias `bias`; nearest even. Overflow is the
// caller's.
inline uint32_t rounded_code(float magnitude, int fraction_bits, int bias) {
  if (magnitude == 0) return 0;
  const int exponent = std::max(std::ilogb(magnitude), 1 - bias);
  const auto steps = static_cast<uint32_t>(std::nearbyint(std::ldexp(magnitude, fraction_bits - exponent)));
  return steps + (static_cast<uint32_t>(exponent + bias - 1) << fraction_bits);
}

inline uint16_t f16_of_float(float x) {
  if (x != x) return 0x7FFF;
  const auto sign = static_cast<uint16_t>(std::signbit(x) ? 0x8000 : 0);
  const float magnitude = std::fabs(x);
  if (magnitude >= 65520.f) return sign | 0x7C00;
  return static_cast<uint16_t>(sign | rounded_code(magnitude, 10, 15));
}

// cvt.rn.satfinite.e4m3x2.f32 of one value.
inline uint8_t e4m3_of_float(float x) {
  if (x != x) return 0x7F;
  const uint32_t sign = std::signbit(x) ? 0x80 : 0;
  const float magnitude = std::fabs(x);
  if (magnitude >= 448.f) return static_cast<uint8_t>(sign | EMU_MUTANT(11, 0x7E, 0x7F));
  return static_cast<uint8_t>(sign | rounded_code(magnitude, 3, EMU_MUTANT(12, 7, 8)));
}

inline float float_of_e4m3(uint8_t code) {
  const int exponent = code >> 3 & 15, fraction = code & 7;
  float x;
  if ((code & 0x7F) == 0x7F) {
    x = std::bit_cast<float>(0x7FC00000u);
  } else {
    x = exponent ? std::ldexp(8.f + static_cast<float>(fraction), exponent - 10)
                 : std::ldexp(static_cast<float>(fraction), -9);
  }
  return code & 0x80 ? -x : x;
}

}  // namespace moela::emu
