// silu_and_mul_quant_fp8 on the CPU. Bound: the arithmetic of the exponential; x is read once.
#pragma once

#include "cpu/scale_factor.h"
#include "cpu/silu_and_mul_quant_fp8.h"
#include "cpu/swiglu_kernel.h"

namespace {

// A group longer than a piece is computed twice: once for its maximum, once for the cast.
void silu_and_mul_quant_fp8(const moela::cpu::SiluAndMulQuantFp8Params& p, int64_t begin, int64_t end) {
  [[maybe_unused]] const ExactSubnormals guard;
  const int64_t num_groups = (p.K + p.group_size - 1) / p.group_size;
  alignas(64) float y[kSwigluPiece];
  const auto piece = [](int64_t stop, int64_t k) {
    return stop - k < kSwigluPiece ? stop - k : kSwigluPiece;
  };
  for (int64_t m = begin; m < end; ++m) {
    const auto load = [&](int64_t k, int64_t n) {
      load_swiglu(p.x, p.x_dtype, m * p.ldx, p.K, k, n, p.activation, y);
    };
    for (int64_t group = 0; group < num_groups; ++group) {
      const int64_t start = group * p.group_size;
      const int64_t stop = p.K - start < p.group_size ? p.K : start + p.group_size;
      uint32_t amax = 0;
      for (int64_t k = start; k < stop; k += kSwigluPiece) {
        load(k, piece(stop, k));
        amax = amax_bits(y, piece(stop, k), amax);
      }
      const float sf = scale_factor(amax, p.ue8m0);
      p.sf[m * num_groups + group] = sf;
      for (int64_t k = start; k < stop; k += kSwigluPiece) {
        if (stop - start > kSwigluPiece) load(k, piece(stop, k));
        quantize(y, piece(stop, k), sf, p.q + m * p.K + k);
      }
    }
  }
}

}  // namespace
