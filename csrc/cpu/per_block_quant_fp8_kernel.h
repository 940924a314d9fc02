// per_block_quant_fp8 on the CPU. Bound: the memory rate, reads w once and writes q once.
#pragma once

#include "cpu/per_block_quant_fp8.h"
#include "cpu/scale_factor.h"

namespace {

void per_block_quant_fp8(const moela::cpu::PerBlockQuantFp8Params& p, int64_t begin, int64_t end) {
  [[maybe_unused]] const ExactSubnormals guard;
  constexpr int64_t kEdge = 128;
  const int64_t block_rows = (p.N + kEdge - 1) / kEdge, block_cols = (p.K + kEdge - 1) / kEdge;
  alignas(64) float x[kEdge * kEdge];  // one block: 64 KB, L2
  for (int64_t task = begin; task < end; ++task) {
    const int64_t e = task / block_rows, n0 = task % block_rows * kEdge;
    const int64_t rows = p.N - n0 < kEdge ? p.N - n0 : kEdge;
    for (int64_t block = 0; block < block_cols; ++block) {
      const int64_t k0 = block * kEdge, cols = p.K - k0 < kEdge ? p.K - k0 : kEdge;
      uint32_t amax = 0;
      for (int64_t n = 0; n < rows; ++n) {
        load_floats(p.w, p.w_dtype, e * p.stride_e + (n0 + n) * p.ldw + k0, cols, x + n * kEdge);
        amax = amax_bits(x + n * kEdge, cols, amax);
      }
      const float sf = scale_factor(amax, p.ue8m0);
      p.sf[task * block_cols + block] = sf;
      for (int64_t n = 0; n < rows; ++n)
        quantize(x + n * kEdge, cols, sf, p.q + (e * p.N + n0 + n) * p.K + k0);
    }
  }
}

}  // namespace
