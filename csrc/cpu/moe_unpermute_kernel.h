// moe_unpermute on the CPU. Bound: the memory rate of reads.
#pragma once

#include "cpu/convert.h"
#include "cpu/moe_unpermute.h"
#include "cpu/simd.h"

namespace {

// A piece of a token's sum stays in L1 while the rows of all slots go by.
constexpr int64_t kUnpermutePiece = 1024;

void moe_unpermute(const moela::cpu::MoeUnpermuteParams& p, int64_t begin, int64_t end) {
  [[maybe_unused]] const ExactSubnormals guard;
  alignas(64) float sum[kUnpermutePiece], term[kUnpermutePiece];
  for (int64_t t = begin; t < end; ++t) {
    for (int64_t h = 0; h < p.H; h += kUnpermutePiece) {
      const int64_t n = p.H - h < kUnpermutePiece ? p.H - h : kUnpermutePiece;
      for (int64_t i = 0; i < n; ++i) sum[i] = 0.f;
      for (int64_t slot = 0; slot < p.topk; ++slot) {
        const int64_t row = p.inverse[t * p.ldi + slot];
        if (row < 0 || row >= p.R) continue;
        load_floats(p.y, p.dtype, row * p.ldy + h, n, term);
        const float weight = p.weights == nullptr ? 1.f : p.weights[t * p.ldw + slot];
        for (int64_t i = 0; i < n; ++i) sum[i] += weight * term[i];
      }
      store_floats(sum, n, p.dtype, p.out, t * p.H + h);
    }
  }
}

}  // namespace
