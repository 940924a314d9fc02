// The two loops of probe.h, in the operations of simd.h.
#pragma once

#include "cpu/probe.h"
#include "cpu/simd.h"

namespace {

// Twelve chains: a multiply-add takes four cycles and two start in each, so eight are enough.
constexpr int kFmaChains = 12;

uint64_t probe_read(const void* p, uint64_t bytes) {
  const auto* words = static_cast<const uint64_t*>(p);
  constexpr uint64_t kStride = 64;  // words in eight cache lines
  // Into L2 and a page and a quarter ahead, where the hardware's own prefetcher has not been: of the
  // distances and targets tried the fastest (23 against 15 GB/s into L1, Zen 4; docs/FACTS.md).
  constexpr uint64_t kAhead = 5120 / sizeof(uint64_t);
  uint64_t lane[8] = {};
  for (uint64_t i = 0; i + kStride <= bytes / 8; i += kStride) {
    for (uint64_t line = 0; line < kStride; line += 8) {
      prefetch_l2(words + i + kAhead + line);
      for (int w = 0; w < 8; ++w) lane[w] ^= words[i + line + w];
    }
  }
  uint64_t sum = 0;
  for (uint64_t w : lane) sum ^= w;
  return sum;
}

// The widest multiply-add of the instruction set.
#if defined(MOELA_SIMD_BF16)
constexpr int kFlopsPerLane = 4;
MOELA_INLINE F widest_multiply_add(F acc) {
  const __m512bh ones = reinterpret_cast<__m512bh>(_mm512_set1_epi32(0x3F803F80));
  return _mm512_dpbf16_ps(acc, ones, ones);
}
#else
constexpr int kFlopsPerLane = 2;
MOELA_INLINE F widest_multiply_add(F acc) { return fma(acc, set1(1.0000001f), set1(1e-9f)); }
#endif

float probe_fma(uint64_t iterations) {
  F acc[kFmaChains];
#pragma GCC unroll 16
  for (int i = 0; i < kFmaChains; ++i) acc[i] = set1(static_cast<float>(i));
  for (uint64_t n = 0; n < iterations; ++n) {
#pragma GCC unroll 16
    for (int i = 0; i < kFmaChains; ++i) acc[i] = widest_multiply_add(acc[i]);
  }
  float lanes[kLanes], sum = 0.f;
  for (const F& a : acc) {
    store(lanes, a);
    for (float l : lanes) sum += l;
  }
  return sum;
}

constexpr moela::cpu::Probe kProbe = {
    .read = probe_read, .fma = probe_fma, .fma_flops = uint64_t{kFlopsPerLane} * kFmaChains * kLanes};

}  // namespace
