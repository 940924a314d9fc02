// Shape and shared memory of a block of an FP8 GEMM: one of the tiles of plan/gemm_sm90.h.
#pragma once

#include "cuda/hopper/hopper.h"
#include "plan/gemm_sm90.h"

namespace moela::cuda::sm90 {

template <int kTileIndex>
struct GemmConfig {
  static constexpr plan::GemmSm90Tile kTile = plan::kGemmSm90Tiles[kTileIndex];
  static constexpr bool kSwaps = kTile.swaps, kSplits = kTile.splits, kSharesLeft = kTile.shares_left;
  // The splits of a swapped tile are the blocks of a cluster, those of another one are summed by its block.
  static constexpr bool kSharesSum = kSwaps && kSplits;
  static constexpr int kMathWarps = 4 * kTile.warpgroups, kThreads = 128 * (kTile.warpgroups + 1);
  static constexpr int kLeft = kTile.block_left(), kRight = kTile.block_right;
  static constexpr int kCluster = kTile.cluster;  // blocks of a multicast, and tiles of either operand of it:
  static constexpr int kClusterLeft = kTile.cluster_left(), kClusterRight = kTile.cluster_right();
  static constexpr bool kInCluster = kCluster > 1 || kSharesSum;
  static constexpr int kStages = kTile.stages, kStep = 128;
  // Rows that one TMA instruction loads: a block's share of a multicast.
  static constexpr int kLeftBox = kLeft / kClusterRight, kRightBox = kRight / kClusterLeft;
  static constexpr uint32_t kLeftBytes = kLeft * kStep, kRightBytes = kRight * kStep;
  // smem_left [kStages][kLeft][128], smem_right [kStages][kRight][128], swizzled by 128 bytes; smem_d: per
  // warpgroup [kRight / 64][64][64] of 16 bits, swizzled; smem_partial [kRight][kPartialPitch] float32; then
  // the barriers.
  // A pitch of 68: the 4 columns that a warp writes at a time lie 2 rows, 8 banks, apart.
  static constexpr int kPartialPitch = kLeft + 4;
  static constexpr uint32_t kDBytes = kSwaps ? 0 : kLeft * kRight * 2,
                            kPartialBytes = kSharesSum ? kRight * kPartialPitch * 4 : 0;
  static constexpr uint32_t kSmemLeft = 0, kSmemRight = kSmemLeft + kStages * kLeftBytes,
                            kSmemD = kSmemRight + kStages * kRightBytes, kSmemPartial = kSmemD + kDBytes,
                            kFull = kSmemPartial + kPartialBytes, kEmpty = kFull + kStages * 8,
                            kPartialFull = kEmpty + kStages * 8, kPartialEmpty = kPartialFull + 8,
                            kSmemBytes = kPartialEmpty + 8;
  static_assert(kSmemBytes <= kMaxSmemBytes, "the stages do not fit a block's shared memory");
  static_assert(kSmemRight % 1024 == 0 && kSmemD % 1024 == 0 && kRightBytes % 1024 == 0,
                "a tile must start on the repeat of its swizzle");
  static_assert(128 % kRight == 0, "a tile must not straddle two scale factors of b");
  static_assert(kLeftBox % 8 == 0 && kRightBox % 8 == 0,
                "a block's share of a multicast is whole swizzle repeats");
  static_assert(kSwaps || kRight % 64 == 0, "smem_d is made of panels of 64 columns");
};

}  // namespace moela::cuda::sm90
