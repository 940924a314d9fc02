// Number formats, bit by bit.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "emu/run.h"

namespace moela::emu {

inline float float_of_bf16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

// A number of 1 sign, `kExponentBits` and `kFractionBits` bits, which is neither infinite nor NaN.
template <int kExponentBits, int kFractionBits>
float float_of_small(uint32_t bits) {
  constexpr int kBias = (1 << (kExponentBits - 1)) - 1, kFloatBias = 127, kFloatFraction = 23;
  const uint32_t sign = bits >> (kExponentBits + kFractionBits) << 31;
  const uint32_t magnitude = bits & ((1u << (kExponentBits + kFractionBits)) - 1);
  if (magnitude >> kFractionBits == 0) {  // subnormal: a multiple of the smallest one
    constexpr auto kSmallest =
        std::bit_cast<float>(static_cast<uint32_t>(kFloatBias + 1 - kBias - kFractionBits) << 23);
    const float x = static_cast<float>(magnitude) * kSmallest;
    return sign ? -x : x;
  }
  constexpr uint32_t kRebias = static_cast<uint32_t>(kFloatBias - kBias) << kFloatFraction;
  return std::bit_cast<float>(sign | ((magnitude << (kFloatFraction - kFractionBits)) + kRebias));
}

inline float float_of_f16(uint16_t bits) {
  if ((bits & 0x7C00) != 0x7C00) return float_of_small<5, 10>(bits);
  const float x = bits & 0x03FF ? std::bit_cast<float>(0x7FC00000u) : INFINITY;
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

// cvt.rn.satfinite.e5m2x2.f32 of one value.
inline uint8_t e5m2_of_float(float x) {
  if (x != x) return 0x7F;
  const uint32_t sign = std::signbit(x) ? 0x80 : 0;
  const float magnitude = std::fabs(x);
  if (magnitude >= 57344.f) return static_cast<uint8_t>(sign | EMU_MUTANT(13, 0x7B, 0x7C));
  return static_cast<uint8_t>(sign | rounded_code(magnitude, 2, 15));
}

// The device may be 2^-22 off.
inline float ex2_approx(float x) {
  const float power = std::exp2(x);
  return power < EMU_MUTANT(14, 0x1p-126f, 0.f) ? 0.f : power;
}

inline float float_of_e4m3(uint8_t code) {
  return (code & 0x7F) == 0x7F ? std::bit_cast<float>(0x7FC00000u) : float_of_small<4, 3>(code);
}

}  // namespace moela::emu
