// e4m3 codes as bfloat16, by tables of bytes.
#pragma once

#include <cstdint>

namespace {

// The bfloat16 of e4m3 codes times 2^-8: sums of a block then overflow no sooner than scaled weights would.
struct E4m3Tables {
  constexpr E4m3Tables() {
    for (int code = 0; code < 128; ++code) {
      const int exponent = code >> 3, fraction = code & 7;
      uint16_t bits = 0;
      if (exponent != 0) {
        bits = static_cast<uint16_t>((exponent - 7 - 8 + 127) << 7 | fraction << 4);
      } else if (fraction != 0) {
        const int top = fraction >= 4 ? 2 : fraction >= 2 ? 1 : 0;  // fraction * 2^-9 has its first bit there
        bits = static_cast<uint16_t>((top - 9 - 8 + 127) << 7 | ((fraction << (7 - top)) & 0x7F));
      }
      if (code == 127) bits = 0x7FC0;
      high[code] = static_cast<uint8_t>(bits >> 8);
      low[code] = static_cast<uint8_t>(bits & 0xFF);
    }
  }
  alignas(64) uint8_t high[128] = {};
  alignas(64) uint8_t low[128] = {};
};
constexpr E4m3Tables kE4m3Tables;
constexpr float kUnscale = 0x1p8f;

}  // namespace
