// Interface of the CPU fp8_gemm: a list of one matrix product. Definition:
// python/moela/reference/fp8_gemm.py.
#pragma once

#include "cpu/gemm_driver.h"

namespace moela::cpu {

// GemmProblem::has_large_sf of `count` scale factors.
inline bool has_large_sf(const float* sf_b, int64_t count) {
  bool large = false;
  for (int64_t i = 0; i < count; ++i) {
    const float magnitude = __builtin_fabsf(sf_b[i]);
    large |= magnitude >= 0x1p8f && magnitude <= 0x1.fffffep127f;
  }
  return large;
}

template <class Allocate, class Parallel>
void fp8_gemm(const GemmKernels& kernel, const GemmProblem& problem, const Allocate& allocate,
              const Parallel& parallel) {
  run_gemms(kernel, {problem}, allocate, parallel);
}

}  // namespace moela::cpu
