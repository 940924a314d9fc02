// Wire rows on their way through shared memory: every warp has two, one is filled while the other is stored.
#pragma once

#include "cuda/block/ep_exchange.cuh"
#include "plan/ep_rows_sm90.h"

namespace moela::cuda::sm90 {

struct EpRowsConfig {
  static constexpr int kWarpSize = 32, kMaxThreads = plan::kEpSm90MaxWarps * kWarpSize;
  static constexpr int kStages = plan::kEpSm90Stages;
  static constexpr uint32_t kBarrierBytes = plan::kEpSm90MaxWarps * kStages * 8, kScratchBytes = 16;
};

// Shared memory: barriers, [kMaxWarps, 2] of 8 bytes; scratch; two words per rank; zeros; stages, [warps, 2]
// of plan.row_bytes, each at a multiple of 128.
struct EpRowsSmem {
  SmemAddr scratch, zeros, stages;
  EpRanks ranks;
};

MOELA_DEVICE EpRowsSmem ep_rows_smem(const EpExchange& x, EpHalf half) {
  using C = EpRowsConfig;
  const int num_ranks = x.memory.num_ranks;
  const SmemAddr scratch = smem_base() + C::kBarrierBytes, ends = scratch + C::kScratchBytes;
  const SmemAddr stages = smem_base() + plan::ep_sm90_head_bytes(num_ranks);
  return {.scratch = scratch,
          .zeros = stages - plan::kEpSm90ZeroBytes,
          .stages = stages,
          .ranks = {.ends = ends, .states = word_of(ends, num_ranks), .epoch = ep_next_epoch(x, half)}};
}

// What a warp owns: its two rows, and an mbarrier for each. Row i of the warp is in stage i % 2.
struct EpWarp {
  SmemAddr rows, barriers;
  uint32_t row_bytes;

  MOELA_DEVICE SmemAddr row(int i) const { return rows + static_cast<uint32_t>(i % 2) * row_bytes; }
  MOELA_DEVICE SmemAddr barrier(int i) const { return barriers + static_cast<uint32_t>(i % 2) * 8; }
  MOELA_DEVICE void wait(int i) const { mbarrier_wait(barrier(i), static_cast<uint32_t>(i / 2 % 2)); }
};

// What this warp owns. It initialises its barriers itself: no other warp uses them.
MOELA_DEVICE EpWarp ep_warp(const EpRowsSmem& smem, const plan::EpRowsSm90Plan& plan) {
  using C = EpRowsConfig;
  const auto w = static_cast<uint32_t>(warp());
  const EpWarp mine = {.rows = smem.stages + w * C::kStages * plan.row_bytes,
                       .barriers = smem_base() + w * C::kStages * 8,
                       .row_bytes = plan.row_bytes};
  if (lane() == 0) {
    mbarrier_init(mine.barrier(0), 1);
    mbarrier_init(mine.barrier(1), 1);
    fence_mbarrier_init();
  }
  sync_warp();
  return mine;
}

// Which rows a warp has: first, first + step, ... Neighbouring warps have neighbouring rows.
struct EpShare {
  int first, step;
};

MOELA_DEVICE EpShare ep_share(const plan::EpRowsSm90Plan& plan) {
  return {block() * plan.warps + warp(), num_blocks() * plan.warps};
}

}  // namespace moela::cuda::sm90
