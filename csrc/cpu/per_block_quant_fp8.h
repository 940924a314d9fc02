// Interface of the CPU per_block_quant_fp8. Definition: python/moela/reference/per_block_quant_fp8.py.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"

namespace moela::cpu {

struct PerBlockQuantFp8Params {
  const void* w;  // [E, N, K] of w_dtype, rows ldw elements apart, matrices stride_e elements apart
  Dtype w_dtype;
  int64_t stride_e;
  int64_t ldw;
  uint8_t* q;  // [E, N, K] e4m3 codes, contiguous
  float* sf;   // [E, ceil(N/128), ceil(K/128)], contiguous
  int64_t E;
  int64_t N;
  int64_t K;
  bool ue8m0;
};

// Quantizes rows of blocks [begin, end) of all E * ceil(N/128).
using PerBlockQuantFp8 = void (*)(const PerBlockQuantFp8Params&, int64_t begin, int64_t end);

}  // namespace moela::cpu
