// Interface of the CPU per_token_group_quant_fp8. Definition:
// python/moela/reference/per_token_group_quant_fp8.py.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"

namespace moela::cpu {

struct PerTokenGroupQuantFp8Params {
  const void* x;  // [M, K] of x_dtype, rows ldx elements apart
  Dtype x_dtype;
  int64_t ldx;
  uint8_t* q;  // [M, K] e4m3 codes, contiguous
  float* sf;   // [M, ceil(K / group_size)], contiguous
  int64_t M;
  int64_t K;
  int64_t group_size;
  bool ue8m0;
};

// Quantizes rows [begin, end).
using PerTokenGroupQuantFp8 = void (*)(const PerTokenGroupQuantFp8Params&, int64_t begin, int64_t end);

}  // namespace moela::cpu
