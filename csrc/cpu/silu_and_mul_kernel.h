// silu_and_mul on the CPU. Bound: the memory rate in float32, else the arithmetic of the exponential.
#pragma once

#include "cpu/silu_and_mul.h"
#include "cpu/swiglu_kernel.h"

namespace {

void silu_and_mul(const moela::cpu::SiluAndMulParams& p, int64_t begin, int64_t end) {
  [[maybe_unused]] const ExactSubnormals guard;
  alignas(64) float y[kSwigluPiece];
  for (int64_t m = begin; m < end; ++m) {
    for (int64_t k = 0; k < p.K; k += kSwigluPiece) {
      const int64_t n = p.K - k < kSwigluPiece ? p.K - k : kSwigluPiece;
      load_swiglu(p.x, p.dtype, m * p.ldx, p.K, k, n, p.activation, y);
      store_floats(y, n, p.dtype, p.y, m * p.K + k);
    }
  }
}

}  // namespace
