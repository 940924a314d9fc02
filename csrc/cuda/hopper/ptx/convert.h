// Conversions between number formats, and arithmetic whose rounding matters.
#pragma once

#include "cuda/hopper/types.h"

namespace moela::cuda::sm90 {

// PTX ISA "cvt.rn.satfinite.e4m3x2.f32": nearest even, clamped to +-448, NaN -> 0x7F. `low` becomes the low
// byte.
MOELA_DEVICE uint16_t cvt_e4m3x2(float low, float high) {
  uint16_t codes;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
  return codes;
}

// PTX ISA "cvt.rn.f16x2.e4m3x2": exact; the low code becomes the low half.
MOELA_DEVICE uint32_t cvt_f16x2_of_e4m3x2(uint16_t codes) {
  uint32_t halves;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(codes));
  return halves;
}

// PTX ISA "cvt.rn.satfinite.e5m2x2.f32": nearest even, clamped to +-57344, NaN -> 0x7F.
MOELA_DEVICE uint16_t cvt_e5m2x2(float low, float high) {
  uint16_t codes;
  asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
  return codes;
}

// PTX ISA "cvt.rn.f16x2.e5m2x2": exact.
MOELA_DEVICE uint32_t cvt_f16x2_of_e5m2x2(uint16_t codes) {
  uint32_t halves;
  asm("cvt.rn.f16x2.e5m2x2 %0, %1;" : "=r"(halves) : "h"(codes));
  return halves;
}

// PTX ISA "cvt.rn.bf16x2.f32".
MOELA_DEVICE uint32_t cvt_bf16x2(float low, float high) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

// PTX ISA "cvt.rn.f16x2.f32".
MOELA_DEVICE uint32_t cvt_f16x2(float low, float high) {
  uint32_t both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

// PTX ISA "cvt.f32.f16": exact.
MOELA_DEVICE float cvt_f32_of_f16(uint16_t half) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(half));
  return x;
}

// A bfloat16 is the upper half of a float.
MOELA_DEVICE float cvt_f32_of_bf16(uint16_t bits) { return float_of(static_cast<uint32_t>(bits) << 16); }

// PTX ISA "div.rn.f32": the IEEE quotient, whatever the compiler options say about fast division.
MOELA_DEVICE float div_rn(float x, float y) {
  float quotient;
  asm("div.rn.f32 %0, %1, %2;" : "=f"(quotient) : "f"(x), "f"(y));
  return quotient;
}

// PTX ISA "ex2.approx.ftz.f32": 2^x with a relative error of at most 2^-22; +0 where that is subnormal, +0
// and +inf for -inf and +inf, NaN for NaN.
MOELA_DEVICE float ex2_approx(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

}  // namespace moela::cuda::sm90
