// Interface of the CPU per_block_dequant_fp8. Definition: python/moela/reference/per_block_dequant_fp8.py.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"

namespace moela::cpu {

struct PerBlockDequantFp8Params {
  const uint8_t* q;  // [E, N, K] e4m3 codes, rows ldq apart, matrices stride_e apart
  int64_t stride_e;
  int64_t ldq;
  const float* sf;  // [E, ceil(N/128), ceil(K/128)], contiguous
  void* w;          // [E, N, K] of w_dtype, contiguous
  Dtype w_dtype;
  int64_t E;
  int64_t N;
  int64_t K;
};

// Dequantizes rows [begin, end) of all E * N.
using PerBlockDequantFp8 = void (*)(const PerBlockDequantFp8Params&, int64_t begin, int64_t end);

}  // namespace moela::cpu
