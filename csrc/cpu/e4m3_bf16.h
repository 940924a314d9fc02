// e4m3 codes as bfloat16, by tables of bytes.
#pragma once

#include <cstdint>

#include "cpu/simd.h"

namespace {

// The bfloat16 of e4m3 codes times 2^factor.
struct E4m3Tables {
  constexpr explicit E4m3Tables(int factor) {
    for (int code = 0; code < 128; ++code) {
      const int exponent = code >> 3, fraction = code & 7;
      uint16_t bits = 0;
      if (exponent != 0) {
        bits = static_cast<uint16_t>((exponent - 7 + factor + 127) << 7 | fraction << 4);
      } else if (fraction != 0) {
        const int top = fraction >= 4 ? 2 : fraction >= 2 ? 1 : 0;  // fraction * 2^-9 has its first bit there
        bits = static_cast<uint16_t>((top - 9 + factor + 127) << 7 | ((fraction << (7 - top)) & 0x7F));
      }
      if (code == 127) bits = 0x7FC0;
      high[code] = static_cast<uint8_t>(bits >> 8);
      low[code] = static_cast<uint8_t>(bits & 0xFF);
    }
  }
  alignas(64) uint8_t high[128] = {};
  alignas(64) uint8_t low[128] = {};
};
// Sums of a block overflow no sooner than scaled weights would.
constexpr E4m3Tables kE4m3Tables(-8);
constexpr float kUnscale = 0x1p8f;

#if defined(MOELA_SIMD_BF16)
// The tables in registers.
struct E4m3Decoder {
  explicit E4m3Decoder(const E4m3Tables& tables = kE4m3Tables)
      : low0(_mm512_load_si512(tables.low)),
        low1(_mm512_load_si512(tables.low + 64)),
        high0(_mm512_load_si512(tables.high)),
        high1(_mm512_load_si512(tables.high + 64)) {}
  // Of each 16 codes the first eight, as bfloat16, and the other eight.
  MOELA_INLINE void decode(I codes, I out[2]) const {
    const I low = _mm512_permutex2var_epi8(low0, codes, low1);
    I high = _mm512_permutex2var_epi8(high0, codes, high1);
    high = _mm512_ternarylogic_epi32(high, codes, sign, 0xF8);  // high | (codes & sign)
    out[0] = _mm512_unpacklo_epi8(low, high);
    out[1] = _mm512_unpackhi_epi8(low, high);
  }
  I low0, low1, high0, high1;
  I sign = _mm512_set1_epi8(static_cast<char>(0x80));
};
#endif

}  // namespace
