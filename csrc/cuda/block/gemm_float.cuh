// Scale factors and biases of several types as float32.
#pragma once

#include "cuda/block/gemm.h"
#include "cuda/hopper/hopper.h"

namespace moela::cuda::sm90 {

// A scale factor or an element of the bias as float32.
MOELA_DEVICE float load_float(const void* values, GemmFloat dtype, int64_t index) {
  switch (dtype) {
    case GemmFloat::kFloat32: return ldg(static_cast<const float*>(values) + index);
    case GemmFloat::kBFloat16: return cvt_f32_of_bf16(ldg(static_cast<const uint16_t*>(values) + index));
    case GemmFloat::kFloat16: return cvt_f32_of_f16(ldg(static_cast<const uint16_t*>(values) + index));
    default: {
      const uint32_t code = ldg(static_cast<const uint8_t*>(values) + index);
      return float_of(code == 255 ? 0x7FC00000u : code == 0 ? 0x00400000u : code << 23);
    }
  }
}

}  // namespace moela::cuda::sm90
