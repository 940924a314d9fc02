// Interface of the CPU silu_and_mul_quant_fp8. Definition: python/moela/reference/silu_and_mul_quant_fp8.py.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"
#include "cpu/swiglu.h"

namespace moela::cpu {

struct SiluAndMulQuantFp8Params {
  const void* x;  // [M, 2 * K] of x_dtype, rows ldx elements apart
  Dtype x_dtype;
  int64_t ldx;
  uint8_t* q;  // [M, K] e4m3 codes, contiguous
  float* sf;   // [M, ceil(K / group_size)], contiguous
  int64_t M;
  int64_t K;
  Swiglu activation;
  int64_t group_size;
  bool ue8m0;
};

// Computes rows [begin, end).
using SiluAndMulQuantFp8 = void (*)(const SiluAndMulQuantFp8Params&, int64_t begin, int64_t end);

}  // namespace moela::cpu
