// What the device side of an FP8 GEMM is given, and the ranges of K and of rows that a block works on.
#pragma once

#include "cuda/block/gemm.h"
#include "cuda/block/gemm_config.cuh"
#include "cuda/block/tile_scheduler.cuh"

namespace moela::cuda::sm90 {

struct GemmParams {
  TensorMap left, right, d;  // [matrices, rows, columns]; d: only if the kernel stores by TMA
  GemmArgs args;
  TileSchedule schedule;
  int splits;
};

// What a block computes at a time.
struct GemmTile {
  int left, right;  // first rows of the operands
  int end;          // of the rows of a that belong to it
  int expert;       // the matrix of b
};

// The one of a and d. Strides of experts are 0 where there is one for all.
MOELA_DEVICE int matrix_of(const GemmParams& p, const GemmTile& tile) {
  return p.args.groups == GroupKind::kCounts ? tile.expert : 0;
}

// The tiles of a block, one after the other: its part of those of its cluster.
template <class C, bool kIsGrouped>
class GemmTiles {
 public:
  MOELA_DEVICE explicit GemmTiles(const GemmParams& p) : scheduler_(p.schedule) {}

  MOELA_DEVICE bool next(GemmTile* tile) {
    ScheduledTile t;
    if (!scheduler_.next(&t)) return false;
    tile->left = t.left * C::kClusterLeft * C::kLeft + (C::kSwaps ? 0 : t.begin);
    tile->right = t.right * C::kClusterRight * C::kRight + (C::kSwaps ? t.begin : 0);
    if constexpr (C::kClusterLeft > 1) tile->left += cluster_rank() * C::kLeft;
    if constexpr (C::kClusterRight > 1) tile->right += cluster_rank() * C::kRight;
    tile->end = t.end;
    tile->expert = t.group;
    return true;
  }

 private:
  TileScheduler<kIsGrouped> scheduler_;
};

// Steps of 128 columns of K.
struct Steps {
  int begin, end;
};

MOELA_DEVICE int num_steps(const GemmParams& p) { return (p.args.K + 127) / 128; }

// The definition of a split: plan/gemm_sm90.h.
MOELA_DEVICE Steps steps_of_split(const GemmParams& p, int split) {
  const int steps = num_steps(p);
  return {split * steps / p.splits, (split + 1) * steps / p.splits};
}

// What this block reads of a tile.
template <class C>
MOELA_DEVICE Steps steps_of_block(const GemmParams& p) {
  if constexpr (C::kSharesSum) return steps_of_split(p, cluster_rank());
  return {0, num_steps(p)};
}

}  // namespace moela::cuda::sm90
