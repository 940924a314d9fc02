// Interface of the CUDA silu_and_mul_quant_fp8. Definition: python/moela/reference/silu_and_mul_quant_fp8.py.
#pragma once

#include <cstdint>

#include "cuda/block/quant_input.h"
#include "cuda/hopper/launch.h"

namespace moela::cuda {

// y = gate * sigmoid(alpha * gate) * (up + shift): limit is infinite without one, alpha 1 and shift 0 for
// silu.
struct SiluAndMulQuantFp8Params {
  const void* x;  // [M, 2 * K], rows ldx elements apart
  QuantInput x_dtype;
  int64_t ldx;
  uint8_t* q;  // [M, K] e4m3 codes, contiguous
  float* sf;   // [M, ceil(K / group_size)], contiguous
  int64_t M;
  int64_t K;
  float limit;
  float alpha;
  float shift;
  int64_t group_size;
  bool ue8m0;
};

LaunchStatus launch_silu_and_mul_quant_fp8(const SiluAndMulQuantFp8Params& params, Stream stream);

}  // namespace moela::cuda
