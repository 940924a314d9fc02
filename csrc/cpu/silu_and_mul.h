// Interface of the CPU silu_and_mul. Definition: python/moela/reference/silu_and_mul.py.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"
#include "cpu/swiglu.h"

namespace moela::cpu {

struct SiluAndMulParams {
  const void* x;  // [M, 2 * K] of dtype, rows ldx elements apart
  Dtype dtype;
  int64_t ldx;
  void* y;  // [M, K] of dtype, contiguous
  int64_t M;
  int64_t K;
  Swiglu activation;
};

// Computes rows [begin, end).
using SiluAndMul = void (*)(const SiluAndMulParams&, int64_t begin, int64_t end);

}  // namespace moela::cpu
