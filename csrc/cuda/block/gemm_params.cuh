// What the device side of an FP8 GEMM is given, and the ranges of K and of rows that a block works on.
#pragma once

#include "cuda/block/gemm.h"
#include "cuda/hopper/hopper.h"

namespace moela::cuda::sm90 {

struct GemmParams {
  TensorMap left, right, d;  // d: only if the kernel stores by TMA
  GemmArgs args;
  int splits, tiles_left, tiles_right;
};

// First rows of a tile's operands.
struct GemmTile {
  int left, right;
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
