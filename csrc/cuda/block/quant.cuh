// What the quantizing kernels share: their input, the largest of a group, and its scale factor.
#pragma once

#include "cuda/block/quant_input.h"
#include "cuda/hopper/hopper.h"

namespace moela::cuda::sm90 {

template <QuantInput kInput>
MOELA_DEVICE float load_element(const void* x, int64_t index) {
  if constexpr (kInput == QuantInput::kFloat32) {
    return ldg(static_cast<const float*>(x) + index);
  } else if constexpr (kInput == QuantInput::kBFloat16) {
    return cvt_f32_of_bf16(ldg(static_cast<const uint16_t*>(x) + index));
  } else {
    return cvt_f32_of_f16(ldg(static_cast<const uint16_t*>(x) + index));
  }
}

// As integers NaN > Inf > finite, so the largest of these keeps a NaN.
MOELA_DEVICE uint32_t magnitude_bits(float x) { return bits_of(x) & 0x7FFFFFFF; }
MOELA_DEVICE uint32_t larger(uint32_t x, uint32_t y) { return x > y ? x : y; }

// max(amax / 448, 2^-126); with ue8m0 rounded up to a power of two. NaN and Inf stay.
MOELA_DEVICE float scale_factor(uint32_t amax, bool ue8m0) {
  const float exact = div_rn(float_of(amax), 448.f);
  const float sf = exact < 0x1p-126f ? 0x1p-126f : exact;
  const uint32_t u = bits_of(sf);
  if (!ue8m0 || u >= 0x7F800000) return sf;
  return float_of((u + 0x7FFFFF) & 0x7F800000);
}

}  // namespace moela::cuda::sm90
