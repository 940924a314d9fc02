// One block of an FP8 GEMM, from barriers to exit: one thread loads, the math warps multiply and store.
#pragma once

#include "cuda/block/gemm_load.cuh"
#include "cuda/block/gemm_reduce.cuh"

namespace moela::cuda::sm90 {

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

// One warp, which looks for tiles together; one thread of it loads.
template <class C, bool kIsGrouped>
MOELA_DEVICE void load_tiles(const GemmParams& p) {
  const bool loads = elect_one();
  if (loads) {
    tma_prefetch_map(&p.left);
    tma_prefetch_map(&p.right);
  }
  Position<C> at;
  GemmTiles<C, kIsGrouped> tiles(p);
  for (GemmTile tile; tiles.next(&tile);)
    if (loads) load_tile<C>(p, tile, at);
  if (loads) drain<C>(at);
}

template <class C, bool kIsGrouped, bool kStoresByTma>
MOELA_DEVICE void multiply_tiles(const GemmParams& p) {
  Position<C> at;
  GemmTiles<C, kIsGrouped> tiles(p);
  uint32_t parity = 0;  // of the number of tiles
  for (GemmTile tile; tiles.next(&tile); parity ^= 1) {
    float sums[C::kRight / 2] = {};
    multiply_tile<C>(p, tile, at, sums);
    if constexpr (C::kSharesSum) {
      reduce_tile<C>(p, tile, parity, sums);
    } else {
      add_bias<C>(p, tile, sums);
      store_tile<C, kIsGrouped, kStoresByTma>(p, tile, sums);
    }
  }
  if constexpr (C::kSharesSum) wait_reduced<C>(parity);
  if constexpr (kStoresByTma)
    if (tid() % 128 == 0) bulk_wait_read<0>();  // shared memory must outlive the reads of the last store
}

// Registers: 65536 / 384 leave 168 a thread; the loading warpgroup gives back all but 40, so that two
// multiplying ones get 232 (64 sums, 2 x 64 accumulators, addresses). With one, 256 threads have enough as it
// is.
template <class C, bool kIsGrouped, bool kStoresByTma>
MOELA_DEVICE void gemm_block(const GemmParams& p) {
  init_barriers<C>(p);
  griddep_wait();  // what comes before overlaps the kernel that writes a
  if (warp() >= C::kMathWarps) {
    if constexpr (C::kMathWarps == 8) setmaxnreg_dec<40>();
    if (warp() == C::kMathWarps) load_tiles<C, kIsGrouped>(p);
  } else {
    if constexpr (C::kMathWarps == 8) setmaxnreg_inc<232>();
    multiply_tiles<C, kIsGrouped, kStoresByTma>(p);
  }
  griddep_launch();
}

}  // namespace moela::cuda::sm90
