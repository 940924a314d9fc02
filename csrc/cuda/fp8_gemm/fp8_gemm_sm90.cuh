// fp8_gemm on Hopper. DESIGN.md has the arithmetic behind the shapes and the schedule.
//
// Computes d = (a * sf_a) @ (b * sf_b).T + bias. The tensor core takes a left operand of 64 rows per
// warpgroup and a right one of kRight rows: tokens and weights, or, with kSwaps, weights and tokens, for few
// tokens. Bound: the tensor core for many tokens, the DRAM rate of b for few. Grid: persistent; a cluster
// owns neighbouring tiles and shares one operand of them by multicast, or owns one swapped tile and shares
// its sum over K. Invariants: a step is 128 columns of K, so it has one scale factor per row of a and one for
// the tile of b (kRight and the rows of a warpgroup divide 128); what lies beyond M, N or K is read as zero
// by TMA and never written. Numerics: per step a tensor-core sum, times the scale factors, added in float32
// in the order of the steps, split by split; the bias; one rounding.
#pragma once

#include "cuda/block/gemm_load.cuh"
#include "cuda/block/gemm_reduce.cuh"
#include "cuda/fp8_gemm/fp8_gemm.h"

namespace moela::cuda::sm90 {
namespace fp8_gemm {

// The tiles of a cluster, one after the other. Clusters side by side in time are kGroup tiles of the left
// operand by some of the right one: their operands stay in L2.
template <class C>
struct Tiles {
  MOELA_DEVICE explicit Tiles(const GemmParams& p)
      : clusters_left(p.tiles_left / C::kClusterLeft),
        clusters_right(p.tiles_right / C::kClusterRight),
        at(cluster()) {}
  MOELA_DEVICE bool next(GemmTile* tile) {
    constexpr int kGroup = 8;
    if (at >= clusters_left * clusters_right) return false;
    const int group = at / (kGroup * clusters_right) * kGroup;
    const int height = clusters_left - group < kGroup ? clusters_left - group : kGroup;
    const int in_group = at - group * clusters_right;
    tile->left = (group + in_group % height) * C::kClusterLeft * C::kLeft;
    tile->right = in_group / height * C::kClusterRight * C::kRight;
    if constexpr (C::kCluster > 1)
      (C::kSharesLeft ? tile->right : tile->left) += cluster_rank() * (C::kSharesLeft ? C::kRight : C::kLeft);
    at += num_blocks() / cluster_size();
    return true;
  }
  int clusters_left, clusters_right, at;
};

template <class C>
MOELA_DEVICE void init_barriers(const GemmParams& p) {
  if (tid() == 0) {
    init_ring<C>();
    if constexpr (C::kSharesSum) init_reduction<C>(p);
    fence_mbarrier_init();
  }
  if constexpr (C::kInCluster) {
    cluster_sync();
  } else {
    sync_block();
  }
}

// One thread.
template <class C>
MOELA_DEVICE void load_tiles(const GemmParams& p) {
  tma_prefetch_map(&p.left);
  tma_prefetch_map(&p.right);
  Position<C> at;
  Tiles<C> tiles(p);
  for (GemmTile tile; tiles.next(&tile);) load_tile<C>(p, tile, at);
  drain<C>(at);
}

template <class C, bool kStoresByTma>
MOELA_DEVICE void multiply_tiles(const GemmParams& p) {
  Position<C> at;
  Tiles<C> tiles(p);
  uint32_t parity = 0;  // of the number of tiles
  for (GemmTile tile; tiles.next(&tile); parity ^= 1) {
    float sums[C::kRight / 2] = {};
    multiply_tile<C>(p, tile, at, sums);
    if constexpr (C::kSharesSum) {
      reduce_tile<C>(p, tile, parity, sums);
    } else {
      add_bias<C>(p, tile, sums);
      if constexpr (kStoresByTma) {
        store_tile<C>(p, tile, sums);
      } else {
        store_elements<C>(p, tile, sums);
      }
    }
  }
  if constexpr (C::kSharesSum) wait_reduced<C>(parity);
  if constexpr (kStoresByTma)
    if (tid() % 128 == 0) bulk_wait_read<0>();  // shared memory must outlive the reads of the last store
}

}  // namespace fp8_gemm

// Registers: 65536 / 384 leave 168 a thread; the loading warpgroup gives back all but 40, so that two
// multiplying ones get 232 (64 sums, 2 x 64 accumulators, addresses). With one, 256 threads have enough as it
// is.
template <class C, bool kStoresByTma>
MOELA_KERNEL(C::kThreads)
fp8_gemm_kernel(MOELA_PARAM GemmParams p) {
  fp8_gemm::init_barriers<C>(p);
  griddep_wait();  // what comes before overlaps the kernel that writes a
  if (warp() >= C::kMathWarps) {
    if constexpr (C::kMathWarps == 8) setmaxnreg_dec<40>();
    if (warp() == C::kMathWarps && elect_one()) fp8_gemm::load_tiles<C>(p);
  } else {
    if constexpr (C::kMathWarps == 8) setmaxnreg_inc<232>();
    fp8_gemm::multiply_tiles<C, kStoresByTma>(p);
  }
  griddep_launch();
}

}  // namespace moela::cuda::sm90
