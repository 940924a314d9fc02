// Wire rows on their way through shared memory: every warp has two, one is filled while the other is stored.
#pragma once

#include "cuda/block/ep_exchange.cuh"
#include "cuda/ep_dispatch/ep_dispatch.h"
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

MOELA_DEVICE EpRowsSmem ep_rows_smem(int num_ranks) {
  using C = EpRowsConfig;
  const SmemAddr scratch = smem_base() + C::kBarrierBytes, ends = scratch + C::kScratchBytes;
  const SmemAddr stages = smem_base() + plan::ep_sm90_head_bytes(num_ranks);
  return {.scratch = scratch,
          .zeros = stages - plan::kEpSm90ZeroBytes,
          .stages = stages,
          .ranks = {.ends = ends, .states = word_of(ends, num_ranks)}};
}

// What a warp owns: its two rows, and an mbarrier for each. Row i of the warp is in stage i % 2.
struct EpWarp {
  SmemAddr rows, barriers;
  uint32_t row_bytes;

  MOELA_DEVICE SmemAddr row(int i) const { return rows + static_cast<uint32_t>(i % 2) * row_bytes; }
  MOELA_DEVICE SmemAddr barrier(int i) const { return barriers + static_cast<uint32_t>(i % 2) * 8; }
  MOELA_DEVICE void wait(int i) const { mbarrier_wait(barrier(i), static_cast<uint32_t>(i / 2 % 2)); }
};

// Each warp initialises its own barriers; the caller's next barrier of the block publishes nothing that
// others use.
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

// The largest power of two up to 16 that divides base, stride and width of a column; with 16 TMA copies it.
MOELA_DEVICE uint32_t ep_width(const EpColumn& c) {
  const uint64_t bits = reinterpret_cast<uint64_t>(c.data) | static_cast<uint64_t>(c.stride) | c.bytes | 16;
  return static_cast<uint32_t>(bits & (~bits + 1));
}

MOELA_DEVICE bool ep_by_tma(const EpColumn& c) { return ep_width(c) == 16; }

// f(T{}) for the type of that width, below 16.
template <class F>
MOELA_DEVICE void ep_with_width(uint32_t width, F f) {
  if (width == 8) {
    f(uint64_t{});
  } else if (width == 4) {
    f(uint32_t{});
  } else if (width == 2) {
    f(uint16_t{});
  } else {
    f(uint8_t{});
  }
}

// All lanes. A column of a row into shared memory, where TMA cannot.
MOELA_DEVICE void ep_load_column(const EpColumn& c, int64_t row, SmemAddr to) {
  const uint8_t* from = c.data + row * c.stride;
  ep_with_width(ep_width(c), [&](auto zero) {
    using T = decltype(zero);
    for (auto b = static_cast<uint32_t>(lane() * sizeof(T)); b < c.bytes; b += 32 * sizeof(T))
      sts(to + b, ldg_nc(reinterpret_cast<const T*>(from + b)));
  });
}

// And back.
MOELA_DEVICE void ep_store_column(const EpColumn& c, int64_t row, SmemAddr from) {
  uint8_t* to = c.data + row * c.stride;
  ep_with_width(ep_width(c), [&](auto zero) {
    using T = decltype(zero);
    for (auto b = static_cast<uint32_t>(lane() * sizeof(T)); b < c.bytes; b += 32 * sizeof(T))
      stg(reinterpret_cast<T*>(to + b), lds<T>(from + b));
  });
}

MOELA_DEVICE void ep_clear_column(const EpColumn& c, int64_t row) {
  uint8_t* to = c.data + row * c.stride;
  ep_with_width(ep_width(c), [&](auto zero) {
    using T = decltype(zero);
    for (auto b = static_cast<uint32_t>(lane() * sizeof(T)); b < c.bytes; b += 32 * sizeof(T))
      stg(reinterpret_cast<T*>(to + b), zero);
  });
}

}  // namespace moela::cuda::sm90
