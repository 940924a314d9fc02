// The epilogue of an FP8 GEMM: the bias, one rounding, and the way to global memory.
#pragma once

#include "cuda/block/gemm_multiply.cuh"

namespace moela::cuda::sm90 {

template <class C>
MOELA_DEVICE void add_bias(const GemmParams& p, const GemmTile& tile, float (&sums)[C::kRight / 2]) {
  const GemmArgs& g = p.args;
  if (g.bias == nullptr) return;
  MOELA_UNROLL
  for (int i = 0; i < C::kRight / 2; ++i) {
    const int n = C::kSwaps ? tile.left + row0() + 8 * (i / 2 % 2) : tile.right + i / 4 * 8 + col0() + i % 2;
    if (n < g.N) sums[i] += load_float(g.bias, g.bias_dtype, n * g.bias_stride);
  }
}

// Two outputs of 16 bits, the low one first.
MOELA_DEVICE uint32_t rounded(const GemmArgs& g, float low, float high) {
  return g.d_dtype == GemmFloat::kBFloat16 ? cvt_bf16x2(low, high) : cvt_f16x2(low, high);
}

MOELA_DEVICE void store_element(const GemmArgs& g, int64_t index, float x) {
  if (g.d_dtype == GemmFloat::kFloat32) {
    stg(static_cast<float*>(g.d) + index, x);
  } else {
    stg(static_cast<uint16_t*>(g.d) + index, static_cast<uint16_t>(rounded(g, x, 0.f)));
  }
}

// Straight from registers: outputs that TMA does not take, and swapped tiles, which are small.
template <class C>
MOELA_DEVICE void store_elements(const GemmParams& p, const GemmTile& tile,
                                 const float (&sums)[C::kRight / 2]) {
  const GemmArgs& g = p.args;
  const int l = tile.left + row0(), r = tile.right + col0();
  const int64_t index = tile.expert * g.d_stride_e + (C::kSwaps ? r : l) * g.ldd + (C::kSwaps ? l : r);
  MOELA_UNROLL
  for (int i = 0; i < C::kRight / 2; ++i) {
    const int dl = 8 * (i / 2 % 2), dr = i / 4 * 8 + i % 2;
    const bool is_row = C::kSwaps ? r + dr < tile.end : l + dl < tile.end;
    const bool is_column = C::kSwaps ? l + dl < g.N : r + dr < g.N;
    if (is_row && is_column)
      store_element(g, index + (C::kSwaps ? dr : dl) * g.ldd + (C::kSwaps ? dl : dr), sums[i]);
  }
}

// Straight from registers, two neighbours at a time: the last rows of a group, in an output that TMA takes,
// so that even columns are at multiples of 4 bytes.
template <class C>
MOELA_DEVICE void store_pairs(const GemmParams& p, const GemmTile& tile, const float (&sums)[C::kRight / 2]) {
  const GemmArgs& g = p.args;
  const int m = tile.left + row0(), n = tile.right + col0();
  uint16_t* d = static_cast<uint16_t*>(g.d) + tile.expert * g.d_stride_e + m * g.ldd + n;
  MOELA_UNROLL
  for (int i = 0; i < C::kRight / 2; i += 2) {
    const int dm = 8 * (i / 2 % 2), dn = i / 4 * 8;
    if (m + dm >= tile.end || n + dn >= g.N) continue;
    const uint32_t pair = rounded(g, sums[i], sums[i + 1]);
    uint16_t* to = d + dm * g.ldd + dn;
    if (n + dn + 1 < g.N) {
      stg(reinterpret_cast<uint32_t*>(to), pair);
    } else {
      stg(to, static_cast<uint16_t>(pair));
    }
  }
}

// Among the threads of a warpgroup; ids are constants, so the warpgroups take different branches.
MOELA_DEVICE void sync_warpgroup() {
  if (warp() / 4 == 0) {
    bar_sync<1>(128);
  } else {
    bar_sync<2>(128);
  }
}

// Through shared memory by TMA, which clips what lies beyond d, while the next tile is multiplied.
template <class C>
MOELA_DEVICE void store_by_tma(const GemmParams& p, const GemmTile& tile,
                               const float (&sums)[C::kRight / 2]) {
  const int warpgroup = warp() / 4;
  const SmemAddr smem = smem_base() + C::kSmemD + static_cast<uint32_t>(warpgroup * 64 * C::kRight * 2);
  const bool issues = tid() % 128 == 0;
  if (issues) bulk_wait_read<0>();  // the last tile's store has read what is overwritten now
  sync_warpgroup();
  MOELA_UNROLL
  for (int j = 0; j < C::kRight / 16; ++j) {  // 16 columns at a time
    const int row = warp() % 4 * 16 + (lane() & 15), chunk = j % 4 * 2 + (lane() >> 4);
    uint32_t r[4];
    MOELA_UNROLL
    for (int i = 0; i < 4; ++i) r[i] = rounded(p.args, sums[j * 8 + 2 * i], sums[j * 8 + 2 * i + 1]);
    stmatrix<4>(smem + static_cast<uint32_t>(j / 4 * 64 * 128 + row * 128 + ((chunk ^ (row & 7)) << 4)), r);
  }
  fence_proxy_async_shared();
  sync_warpgroup();
  if (!issues) return;
  for (int panel = 0; panel < C::kRight / 64; ++panel)
    if (tile.right + panel * 64 < p.args.N && tile.left + warpgroup * 64 < tile.end)
      tma_store_3d(&p.d, tile.right + panel * 64, tile.left + warpgroup * 64, matrix_of(p, tile),
                   smem + static_cast<uint32_t>(panel * 64 * 128));
  bulk_commit();
}

template <class C, bool kIsGrouped, bool kStoresByTma>
MOELA_DEVICE void store_tile(const GemmParams& p, const GemmTile& tile, const float (&sums)[C::kRight / 2]) {
  if constexpr (!kStoresByTma) {
    store_elements<C>(p, tile, sums);
  } else {
    bool is_clipped = true;  // TMA clips at the end of d, but not at that of a group
    if constexpr (kIsGrouped) is_clipped = tile.left + warp() / 4 * 64 + 64 <= tile.end;
    if (is_clipped) {
      store_by_tma<C>(p, tile, sums);
    } else {
      store_pairs<C>(p, tile, sums);
    }
  }
}

}  // namespace moela::cuda::sm90
