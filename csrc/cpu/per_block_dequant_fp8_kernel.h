// per_block_dequant_fp8 on the CPU. Bound: the memory rate, reads q once and writes w once.
#pragma once

#include "cpu/convert.h"
#include "cpu/per_block_dequant_fp8.h"
#include "cpu/simd.h"

namespace {

void per_block_dequant_fp8(const moela::cpu::PerBlockDequantFp8Params& p, int64_t begin, int64_t end) {
  [[maybe_unused]] const ExactSubnormals guard;
  constexpr int64_t kEdge = 128;
  const int64_t block_rows = (p.N + kEdge - 1) / kEdge, block_cols = (p.K + kEdge - 1) / kEdge;
  alignas(64) float x[kEdge];
  for (int64_t row = begin; row < end; ++row) {
    const int64_t e = row / p.N, n = row % p.N;
    const float* sf = p.sf + (e * block_rows + n / kEdge) * block_cols;
    for (int64_t block = 0; block < block_cols; ++block) {
      const int64_t k0 = block * kEdge, cols = p.K - k0 < kEdge ? p.K - k0 : kEdge;
      load_floats(p.q, Dtype::kE4m3, e * p.stride_e + n * p.ldq + k0, cols, x);
      for (int64_t k = 0; k < cols; ++k) x[k] *= sf[block];
      store_floats(x, cols, p.w_dtype, p.w, row * p.K + k0);
    }
  }
}

}  // namespace
