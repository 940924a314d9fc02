// The products of attention over latent rows: queries with a block of keys, and weights with a warpgroup's
// half of its values' columns.
#pragma once

#include "cuda/block/softmax.cuh"
#include "cuda/mla_decode/mla_params.cuh"

namespace moela::cuda::sm90 {

// An element of a swizzled panel: row, and column in bytes.
MOELA_DEVICE uint32_t panel_byte(int row, int column_bytes) {
  return static_cast<uint32_t>(row * 128 + ((column_bytes / 16 ^ (row & 7)) * 16) + column_bytes % 16);
}

template <class C>
MOELA_DEVICE float to_float32(uint16_t bits) {
  return C::kFloat == MlaFloat::kBFloat16 ? cvt_f32_of_bf16(bits) : cvt_f32_of_f16(bits);
}

template <class C, bool kTransposeA, bool kTransposeB, int kN>
MOELA_DEVICE void multiply(Acc<kN>& acc, uint64_t a, uint64_t b, bool accumulate) {
  if constexpr (C::kFloat == MlaFloat::kBFloat16) {
    wgmma_bf16<kTransposeA, kTransposeB>(acc, a, b, accumulate);
  } else {
    wgmma_f16<kTransposeA, kTransposeB>(acc, a, b, accumulate);
  }
}

template <class C, int kN>
MOELA_DEVICE void multiply_rs(Acc<kN>& acc, const AFragment& a, uint64_t b) {
  if constexpr (C::kFloat == MlaFloat::kBFloat16) {
    wgmma_bf16_rs<true>(acc, a, b, true);
  } else {
    wgmma_f16_rs<true>(acc, a, b, true);
  }
}

template <MlaFloat kFloat>
MOELA_DEVICE uint32_t rounded_pair(float low, float high) {
  return kFloat == MlaFloat::kBFloat16 ? cvt_bf16x2(low, high) : cvt_f16x2(low, high);
}

// Weights of a block from the registers of scores to those of the left operand.
template <class C>
MOELA_DEVICE void round_weights(const Acc<C::kKeys>& scores, AFragment (&weights)[4]) {
  MOELA_UNROLL
  for (int i = 0; i < 16; ++i)
    weights[i / 4].set(i % 4, rounded_pair<C::kFloat>(scores.get(2 * i), scores.get(2 * i + 1)));
}

// And to a panel [kRows][kKeys] of shared memory, by one warpgroup.
template <class C>
MOELA_DEVICE void store_weights(SmemAddr panel, const AFragment (&weights)[4]) {
  MOELA_UNROLL
  for (int j = 0; j < 4; ++j) {
    const int row = warp() % 4 * 16 + (lane() & 15), chunk = 2 * j + (lane() >> 4);
    const uint32_t r[4] = {weights[j].get(0), weights[j].get(1), weights[j].get(2), weights[j].get(3)};
    stmatrix<4>(panel + panel_byte(row, chunk * 16), r);
  }
}

// One of the two math warpgroups: its half of the values' columns, and a thread's two rows.
template <class C, int kGroup>
struct MlaHalf {
  static constexpr int kFirstPanel = kGroup * C::kHalfPanels;
  Acc<C::kHalf> sums;

  static MOELA_DEVICE int row(int r) { return warp() % 4 * 16 + lane() / 4 + 8 * r; }
  static MOELA_DEVICE void sync() { bar_sync<1 + kGroup>(128); }
  static MOELA_DEVICE SmemAddr values(int stage) {
    return smem_base() + C::kSmemKv + static_cast<uint32_t>(stage) * C::kTileBytes +
           static_cast<uint32_t>(kFirstPanel) * C::kPanelBytes;
  }

  MOELA_DEVICE void clear() {
    MOELA_UNROLL
    for (int i = 0; i < C::kHalf / 2; ++i) sums.set(i, 0.f);
  }
  // A maximum that has not grown, as in most blocks but the first few, leaves a factor of 1.
  MOELA_DEVICE void rescale(const float (&factor)[2]) {
    if (vote_ballot(factor[0] != 1.f || factor[1] != 1.f) == 0) return;
    MOELA_UNROLL
    for (int i = 0; i < C::kHalf / 2; ++i) sums.set(i, sums.get(i) * factor[i / 2 % 2]);
  }

  // sums += weights x values, with weights from registers or from shared memory.
  MOELA_DEVICE void multiply_values(AFragment (&weights)[4], int stage) {
    const uint64_t v = make_descriptor(values(stage), C::kPanelBytes, 1024, OperandLayout::k128B);
    wgmma_fence(sums, weights[0], weights[1], weights[2], weights[3]);
    MOELA_UNROLL
    for (uint32_t step = 0; step < 4; ++step)
      multiply_rs<C>(sums, weights[step], advance_descriptor(v, step * 16 * 128));
    wgmma_commit();
    wgmma_wait<0>(sums, weights[0], weights[1], weights[2], weights[3]);
  }
  MOELA_DEVICE void multiply_values(int stage) {
    start_values(stage);
    wgmma_wait<0>(sums);
  }
  MOELA_DEVICE void start_values(int stage) {
    const uint64_t p = make_descriptor(C::weights(stage), 0, 1024, OperandLayout::k128B);
    const uint64_t v = make_descriptor(values(stage), C::kPanelBytes, 1024, OperandLayout::k128B);
    wgmma_fence(sums);
    MOELA_UNROLL
    for (uint32_t step = 0; step < 4; ++step)
      multiply<C, false, true>(sums, advance_descriptor(p, step * 32), advance_descriptor(v, step * 16 * 128),
                               true);
    wgmma_commit();
  }
};

// Of 64 columns, queries and keys at these descriptors; the first panel overwrites the scores.
template <class C>
MOELA_DEVICE void multiply_panel(Acc<C::kKeys>& scores, uint64_t q, uint64_t k, uint32_t panel) {
  MOELA_UNROLL
  for (uint32_t step = 0; step < 4; ++step) {
    const uint32_t bytes = panel * C::kPanelBytes + step * 32;
    multiply<C, false, false>(scores, advance_descriptor(q, bytes), advance_descriptor(k, bytes),
                              panel > 0 || step > 0);
  }
}

template <class C>
MOELA_DEVICE void multiply_keys(Acc<C::kKeys>& scores, int stage) {
  const uint64_t q = make_descriptor(smem_base() + C::kSmemQ, 0, 1024, OperandLayout::k128B);
  const uint64_t k = make_descriptor(smem_base() + C::kSmemKv + static_cast<uint32_t>(stage) * C::kTileBytes,
                                     0, 1024, OperandLayout::k128B);
  wgmma_fence(scores);
  MOELA_UNROLL
  for (uint32_t panel = 0; panel < C::kPanels; ++panel) multiply_panel<C>(scores, q, k, panel);
  wgmma_commit();
  wgmma_wait<0>(scores);
}

}  // namespace moela::cuda::sm90
