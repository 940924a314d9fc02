// The only PTX and the only device intrinsics of the project: one function = one instruction.
#pragma once

#include <cstdint>

namespace moela::cuda::sm90 {

// PTX ISA "cvt.rn.satfinite.e4m3x2.f32": nearest even, clamped to +-448, NaN -> 0x7F. `low` becomes the low
// byte.
__device__ __forceinline__ uint16_t cvt_e4m3x2(float low, float high) {
  uint16_t codes;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
  return codes;
}

// PTX ISA "redux.sync.max.u32": the largest of a warp's values, in every lane.
__device__ __forceinline__ uint32_t redux_max(uint32_t x) {
  uint32_t max;
  asm volatile("redux.sync.max.u32 %0, %1, 0xffffffff;" : "=r"(max) : "r"(x));
  return max;
}

// PTX ISA "div.rn.f32": the IEEE quotient, whatever the compiler options say about fast division.
__device__ __forceinline__ float div_rn(float x, float y) {
  float quotient;
  asm("div.rn.f32 %0, %1, %2;" : "=f"(quotient) : "f"(x), "f"(y));
  return quotient;
}

}  // namespace moela::cuda::sm90
