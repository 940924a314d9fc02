// per_token_group_quant_fp8 on the CPU. Bound: the memory rate, reads x once and writes q once.
#pragma once

#include "cpu/per_token_group_quant_fp8.h"
#include "cpu/scale_factor.h"

namespace {

// A group is read in pieces of this size, twice: once for its maximum, once for the cast, the second time
// from L1.
constexpr int64_t kPiece = 512;

void per_token_group_quant_fp8(const moela::cpu::PerTokenGroupQuantFp8Params& p, int64_t begin, int64_t end) {
  [[maybe_unused]] const ExactSubnormals guard;
  const int64_t num_groups = (p.K + p.group_size - 1) / p.group_size;
  alignas(64) float x[kPiece];
  const auto piece = [&](int64_t stop, int64_t k) { return stop - k < kPiece ? stop - k : kPiece; };
  for (int64_t m = begin; m < end; ++m) {
    for (int64_t group = 0; group < num_groups; ++group) {
      const int64_t start = group * p.group_size;
      const int64_t stop = p.K - start < p.group_size ? p.K : start + p.group_size;
      uint32_t amax = 0;
      for (int64_t k = start; k < stop; k += kPiece) {
        load_floats(p.x, p.x_dtype, m * p.ldx + k, piece(stop, k), x);
        amax = amax_bits(x, piece(stop, k), amax);
      }
      const float sf = scale_factor(amax, p.ue8m0);
      p.sf[m * num_groups + group] = sf;
      for (int64_t k = start; k < stop; k += kPiece) {
        if (stop - start > kPiece) load_floats(p.x, p.x_dtype, m * p.ldx + k, piece(stop, k), x);
        quantize(x, piece(stop, k), sf, p.q + m * p.K + k);
      }
    }
  }
}

}  // namespace
