// out = (q k^T) v for two blocks of keys, without a softmax: the scores go from accumulators to fragments of
// A, and the second block's scores are computed and converted while the first block's product with v is under
// way. v is MN-major. Warp 4 loads, warpgroup 0 multiplies.
#pragma once

#include "bugs.h"
#include "cuda/hopper/hopper.h"

struct AttentionConfig {
  static constexpr int kQueries = 64, kKeys = 64, kDim = 64, kBlocks = 2, kThreads = 160;
  static constexpr uint32_t kTileBytes = 64 * 64 * 2, kQ = 0, kK = kTileBytes, kV = kK + kBlocks * kTileBytes,
                            kFull = kV + kBlocks * kTileBytes, kSmemBytes = kFull + kBlocks * 8;
};

struct AttentionParams {
  moela::cuda::sm90::TensorMap q, k, v;  // [64, 64], [128, 64], [128, 64] bfloat16
  float* out;                            // [64, 64]
  Bug bug;
};

namespace attention {

using namespace moela::cuda::sm90;
using C = AttentionConfig;

// full[j]: one arrival, of the loading thread, with the bytes of block j (and of q). Warpgroup 0 waits.
MOELA_DEVICE SmemAddr full(int j) { return smem_base() + C::kFull + static_cast<uint32_t>(j) * 8; }

MOELA_DEVICE void load_tiles(const AttentionParams& p) {
  for (int j = 0; j < C::kBlocks; ++j) {
    const SmemAddr k = smem_base() + C::kK + static_cast<uint32_t>(j) * C::kTileBytes;
    const SmemAddr v = smem_base() + C::kV + static_cast<uint32_t>(j) * C::kTileBytes;
    mbarrier_arrive_expect_tx(full(j), (j == 0 ? 3 : 2) * C::kTileBytes);
    if (j == 0) tma_load_2d(smem_base() + C::kQ, &p.q, 0, 0, full(j));
    tma_load_2d(k, &p.k, 0, j * C::kKeys, full(j));
    tma_load_2d(v, &p.v, 0, j * C::kKeys, full(j));
  }
}

MOELA_DEVICE void multiply_keys(Acc<C::kKeys>& scores, int j) {
  const uint64_t q = make_descriptor(smem_base() + C::kQ, 0, 1024, OperandLayout::k128B);
  const uint64_t k = make_descriptor(smem_base() + C::kK + static_cast<uint32_t>(j) * C::kTileBytes, 0, 1024,
                                     OperandLayout::k128B);
  wgmma_fence(scores);
  MOELA_UNROLL
  for (uint32_t step = 0; step < 4; ++step)
    wgmma_bf16<false, false>(scores, advance_descriptor(q, step * 32), advance_descriptor(k, step * 32),
                             step > 0);
  wgmma_commit();
}

// 16 keys a fragment: two 8-column groups of the scores.
MOELA_DEVICE void take_scores(const Acc<C::kKeys>& scores, AFragment (&p)[4]) {
  MOELA_UNROLL
  for (int step = 0; step < 4; ++step) {
    MOELA_UNROLL
    for (int r = 0; r < 4; ++r)
      p[step].set(r, cvt_bf16x2(scores.get(step * 8 + 2 * r), scores.get(step * 8 + 2 * r + 1)));
  }
}

MOELA_DEVICE void multiply_values(Acc<C::kDim>& out, AFragment (&p)[4], int j, Bug bug) {
  const SmemAddr tile = smem_base() + C::kV + static_cast<uint32_t>(j) * C::kTileBytes;
  const bool swaps = bug == Bug::kOffsetsSwapped;
  const uint64_t v = make_descriptor(tile, swaps ? 1024 : 0, swaps ? 0 : 1024, OperandLayout::k128B);
  if (bug != Bug::kFragmentNotFenced) wgmma_fence(out, p[0], p[1], p[2], p[3]);
  MOELA_UNROLL
  for (uint32_t step = 0; step < 4; ++step) {
    if (bug == Bug::kValuesAsKMajor) {
      wgmma_bf16_rs<false>(out, p[step], advance_descriptor(v, step * 32), j > 0 || step > 0);
    } else {
      wgmma_bf16_rs<true>(out, p[step], advance_descriptor(v, step * 2048), j > 0 || step > 0);
    }
  }
  wgmma_commit();
}

MOELA_DEVICE void multiply_tiles(const AttentionParams& p) {
  Acc<C::kKeys> scores;
  Acc<C::kDim> out;
  AFragment first[4], second[4];
  mbarrier_wait(full(0), 0);
  multiply_keys(scores, 0);
  wgmma_wait<0>(scores);
  take_scores(scores, first);
  if (p.bug != Bug::kNextKeysNotWaitedFor) mbarrier_wait(full(1), 0);
  multiply_keys(scores, 1);
  multiply_values(out, first, 0, p.bug);
  if (p.bug == Bug::kScoresReadEarly) {
    wgmma_wait<2>(scores);
  } else {
    wgmma_wait<1>(scores);  // the scores are there, the product with v is under way
  }
  take_scores(scores, p.bug == Bug::kFragmentRewritten ? first : second);
  if (p.bug == Bug::kOutputScaledInFlight) out.set(0, 2.f * out.get(0));
  multiply_values(out, p.bug == Bug::kFragmentRewritten ? first : second, 1, p.bug);
  wgmma_wait<0>(out, first[0], second[0]);
  const int row = warp() * 16 + lane() / 4;
  MOELA_UNROLL
  for (int i = 0; i < C::kDim / 2; ++i)
    stg(p.out + (row + 8 * (i / 2 % 2)) * C::kDim + i / 4 * 8 + 2 * (lane() % 4) + i % 2, out.get(i));
}

}  // namespace attention

MOELA_KERNEL(AttentionConfig::kThreads) attention_kernel(MOELA_PARAM AttentionParams p) {
  using namespace attention;
  if (tid() == 0) {
    for (int j = 0; j < C::kBlocks; ++j) mbarrier_init(full(j), 1);
    fence_mbarrier_init();
  }
  sync_block();
  if (warp() == 4) {
    if (elect_one()) load_tiles(p);
  } else {
    multiply_tiles(p);
  }
}
