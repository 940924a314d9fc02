// Interface of the CUDA per_token_group_quant_fp8. Definition:
// python/moela/reference/per_token_group_quant_fp8.py.
#pragma once

#include <cstdint>

#include "cuda/block/quant_input.h"
#include "cuda/hopper/launch.h"

namespace moela::cuda {

struct PerTokenGroupQuantFp8Params {
  const void* x;  // [M, K], rows ldx elements apart
  QuantInput x_dtype;
  int64_t ldx;
  uint8_t* q;  // [M, K] e4m3 codes, contiguous
  float* sf;   // [M, ceil(K / group_size)], contiguous
  int64_t M;
  int64_t K;
  int64_t group_size;
  bool ue8m0;
  bool takes_four = false;  // rows of x and q let a lane move four elements at once; launch finds out
};

LaunchStatus launch_per_token_group_quant_fp8(PerTokenGroupQuantFp8Params params, Stream stream);

}  // namespace moela::cuda
