// The sum of a swapped tile over its splits, which the blocks of a cluster have: each adds up some of its
// tokens, reading the others' shared memory, in the order of the splits.
#pragma once

#include "cuda/block/gemm_store.cuh"

namespace moela::cuda::sm90 {

// partial_full: one arrival per math warp of the cluster, when its partial sums are written. partial_empty:
// the same, when it has read those of this block. Math warps wait for both.
template <class C>
MOELA_DEVICE void init_reduction(const GemmParams& p) {
  mbarrier_init(smem_base() + C::kPartialFull, static_cast<uint32_t>(p.splits * C::kMathWarps));
  mbarrier_init(smem_base() + C::kPartialEmpty, static_cast<uint32_t>(p.splits * C::kMathWarps));
}

// Tells every block of the cluster, of which there are splits.
MOELA_DEVICE void arrive_everywhere(const GemmParams& p, SmemAddr barrier) {
  sync_warp();
  if (lane() < p.splits) mbarrier_arrive_remote(mapa(barrier, lane()));
}

template <class C>
MOELA_DEVICE SmemAddr partial(int l, int r) {
  return smem_base() + C::kSmemPartial + static_cast<uint32_t>((r * C::kPartialPitch + l) * 4);
}

template <class C>
MOELA_DEVICE void write_partial(const float (&sums)[C::kRight / 2]) {
  MOELA_UNROLL
  for (int i = 0; i < C::kRight / 2; ++i)
    sts(partial<C>(row0() + 8 * (i / 2 % 2), i / 4 * 8 + col0() + i % 2), sums[i]);
}

// A weight of the tile per thread, so that a warp stores 32 neighbours of a row of d.
template <class C>
MOELA_DEVICE void add_partials(const GemmParams& p, const GemmTile& tile) {
  constexpr int kMaxSplits = 8, kTokensAtOnce = C::kMathWarps * 32 / C::kLeft;
  const GemmArgs& g = p.args;
  const int l = tid() % C::kLeft, n = tile.left + l, tokens = C::kRight / p.splits;
  const float bias = g.bias != nullptr && n < g.N ? load_float(g.bias, g.bias_dtype, n * g.bias_stride) : 0.f;
  for (int i = tid() / C::kLeft; i < tokens; i += kTokensAtOnce) {
    const int r = cluster_rank() * tokens + i;
    if (tile.right + r >= tile.end) return;
    float part[kMaxSplits];
    MOELA_UNROLL
    for (int split = 0; split < kMaxSplits; ++split)  // unrolled: the loads do not wait for each other
      part[split] = split < p.splits ? lds_cluster<float>(mapa(partial<C>(l, r), split)) : 0.f;
    float sum = 0;
    MOELA_UNROLL
    for (int split = 0; split < kMaxSplits; ++split)
      if (split < p.splits) sum += part[split];
    if (n < g.N) store_element(g, tile.expert * g.d_stride_e + (tile.right + r) * g.ldd + n, sum + bias);
  }
}

// `parity` is that of the number of tiles before.
template <class C>
MOELA_DEVICE void reduce_tile(const GemmParams& p, const GemmTile& tile, uint32_t parity,
                              const float (&sums)[C::kRight / 2]) {
  const SmemAddr is_full = smem_base() + C::kPartialFull, is_empty = smem_base() + C::kPartialEmpty;
  mbarrier_wait_cluster(is_empty, parity ^ 1);
  write_partial<C>(sums);
  arrive_everywhere(p, is_full);
  mbarrier_wait_cluster(is_full, parity);
  add_partials<C>(p, tile);
  arrive_everywhere(p, is_empty);
}

// Until the cluster has read this block's partial sums of the last tile: shared memory must outlive that.
template <class C>
MOELA_DEVICE void wait_reduced(uint32_t parity) {
  mbarrier_wait_cluster(smem_base() + C::kPartialEmpty, parity ^ 1);
}

}  // namespace moela::cuda::sm90
