// The loading side of an FP8 GEMM: both operands of a tile by TMA, one of them shared within a cluster.
#pragma once

#include "cuda/block/gemm_params.cuh"
#include "cuda/block/gemm_ring.cuh"

namespace moela::cuda::sm90 {

// `rows` of an operand from `row` on, in one copy; or, if the cluster shares them, this block's part of them
// to every block.
template <class C, bool kShares, int kBox>
MOELA_DEVICE void load_operand(SmemAddr to, const TensorMap* map, int step, int row, int matrix,
                               SmemAddr barrier) {
  if constexpr (kShares && C::kCluster > 1) {
    const int first = cluster_rank() * kBox;
    tma_load_multicast_3d(to + static_cast<uint32_t>(first * C::kStep), map, step * C::kStep, row + first,
                          matrix, barrier, static_cast<uint16_t>((1 << C::kCluster) - 1));
  } else {
    tma_load_3d(to, map, step * C::kStep, row, matrix, barrier);
  }
}

// One thread. Keeps the ring full.
template <class C>
MOELA_DEVICE void load_tile(const GemmParams& p, const GemmTile& tile, Position<C>& at) {
  const SmemAddr smem = smem_base();
  const Steps steps = steps_of_block<C>(p);
  const int matrix = matrix_of(p, tile);
  for (int step = steps.begin; step < steps.end; ++step, at.advance()) {
    const auto s = static_cast<uint32_t>(at.stage);
    const SmemAddr barrier = full<C>(at.stage);
    wait_empty(at);
    mbarrier_arrive_expect_tx(barrier, C::kLeftBytes + C::kRightBytes);
    load_operand<C, C::kSharesLeft, C::kLeftBox>(smem + C::kSmemLeft + s * C::kLeftBytes, &p.left, step,
                                                 tile.left, C::kSwaps ? tile.expert : matrix, barrier);
    load_operand<C, !C::kSharesLeft, C::kRightBox>(smem + C::kSmemRight + s * C::kRightBytes, &p.right, step,
                                                   tile.right, C::kSwaps ? matrix : tile.expert, barrier);
  }
}

}  // namespace moela::cuda::sm90
