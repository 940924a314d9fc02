// fp8_gemm for many rows of a: a panel of weights. Part of fp8_gemm_kernel.h, which has the numerics.
//
// Bound: the multiply-add rate. A [kCols, 1024] tile of b is transposed once into a panel of codes, columns
// of d side by side in the lanes. Then, chain by chain, the weights of one chain are decoded into L1 and
// multiplied with every row tile of a. (A panel of decoded weights is four times larger and falls out of L1:
// 28 cycles per 64 weights against 21, Zen 4.)
#pragma once

#include "cpu/fp8_gemm_kernel.h"

namespace {

// The order in which a tile computes its chains: 0, 8, 4, 12, 2 ... Each then finds the partner that the tree
// adds it to already there, and four partial sums are enough.
constexpr int chain_of_pass(int pass) {
  return (pass & 1) << 3 | (pass & 2) << 1 | (pass & 4) >> 1 | (pass & 8) >> 3;
}

// [pass][row tile][4 * group + i][row of the tile]: what is multiplied, in its order.
void pack_for_panel(const Fp8GemmParams& p, const Fp8GemmChunk& chunk, const Slab& slab, float* out) {
  const RowTiles tiles(chunk.num_rows, kTileRows);
  alignas(64) float rows[kTileRows][kSlab];
  for (int64_t t = 0; t < tiles.count; ++t) {
    const int64_t num_rows = tiles.rows(t);
    for (int64_t m = 0; m < num_rows; ++m) load_row(p, slab, chunk.m0 + tiles.begin(t) + m, rows[m]);
    for (int pass = 0; pass < kChains; ++pass) {
      float* to = out + 4 * slab.groups * (pass * chunk.num_rows + tiles.begin(t));
      for (int64_t g = 0; g < slab.groups; ++g, to += 4 * num_rows) {
        const int64_t k = g * kGroup + 4 * chain_of_pass(pass);
        for (int64_t m = 0; m < num_rows; ++m)
          for (int i = 0; i < 4; ++i) to[i * num_rows + m] = rows[m][k + i];
      }
    }
  }
}

// Lane l of q[chain][group][v]: the four codes of row v * kLanes + l of the tile, columns 64 group + 4 chain
// ...
struct Panel {
  void fill(const CodeTile& tile, const Slab& slab, I* seen) {
    for (int64_t g = 0; g < slab.groups; ++g)
      for (int v = 0; v < kVecs; ++v)
        for (int half = 0; half < kChains; half += kLanes) {
          I quads[kLanes];
          load_quads(tile.codes + v * kLanes * tile.ld + g * kGroup + 4 * half, tile.ld, quads);
#pragma GCC unroll 16
          for (int j = 0; j < kLanes; ++j) {
            seen[v] = note_nan(seen[v], quads[j]);
            q[half + j][g][v] = quads[j];
          }
        }
  }

  // The weights of one chain as float32, into weights[4 * group + i][kCols].
  void decode(int chain, int64_t groups, const float* sf_b, float* weights) const {
    for (int64_t g = 0; g < groups; ++g) {
      const float sf = sf_b[g / (kBlock / kGroup)];
      // 2^120 of decode_tiny goes into the scale factor, unless that might overflow.
      const bool is_large = __builtin_fabsf(sf) >= 0x1p8f;
      const F first = set1(is_large ? kUntiny : sf * kUntiny), second = set1(sf);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i, weights += kCols)
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) {
          F w = mul(decode_tiny(q[chain][g][v], i), first);
          if (is_large) w = mul(w, second);
          store(weights + v * kLanes, w);
        }
    }
  }

  alignas(64) I q[kChains][kGroupsPerSlab][kVecs];
};

// One chain of kRows rows of a, plus the partial sums `partners`, into `out`; all [kRows][kCols]. Without the
// pin gcc 12 loads a weight again in every multiply-add (31 against 90 GFLOP/s, AVX2).
template <int kRows>
__attribute__((noinline)) void multiply_chain(const float* a, const float* weights, int64_t groups,
                                              const float* const* partners, int num_partners, float* out) {
  F acc[kRows][kVecs];
#pragma GCC unroll 32
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) acc[m][v] = zero();
  for (int64_t g = 0; g < groups; ++g) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      F w[kVecs];
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        w[v] = load(weights + (4 * g + i) * kCols + v * kLanes);
        pin(w[v]);
      }
#pragma GCC unroll 32
      for (int m = 0; m < kRows; ++m) {
        const F x = set1(a[(4 * g + i) * kRows + m]);
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) acc[m][v] = fma(x, w[v], acc[m][v]);
      }
    }
  }
  for (int p = 0; p < num_partners; ++p) {
#pragma GCC unroll 32
    for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) acc[m][v] = add(load(partners[p] + m * kCols + v * kLanes), acc[m][v]);
  }
#pragma GCC unroll 32
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) store(out + m * kCols + v * kLanes, acc[m][v]);
}

using MultiplyFn = void (*)(const float*, const float*, int64_t, const float* const*, int, float*);

template <int kRows = kTileRows>
MultiplyFn multiply_for(int64_t num_rows) {
  if constexpr (kRows == 1) {
    return multiply_chain<1>;
  } else {
    return num_rows >= kRows ? multiply_chain<kRows> : multiply_for<kRows - 1>(num_rows);
  }
}

// Sums of some chains of every row: level[l] holds 2^l chains that wait for 2^l more.
struct Levels {
  alignas(64) float level[4][kMaxRows * kCols];
};

// Prefetches an eighth of the tile that comes next into L2, in each of the last eight passes of a slab.
// Earlier, and what is read of a in between would push it out again.
MOELA_INLINE void prefetch_next(const Fp8GemmParams& p, int64_t n0, const Slab& slab, int pass) {
  if (pass < kChains / 2) return;
  constexpr int kRowsPerPass = kCols / (kChains / 2);
  const bool is_last = slab.k0 + kSlab >= p.K;
  const uint8_t* codes = p.b + (is_last ? (n0 + kCols) * p.ldb : n0 * p.ldb + slab.k0 + kSlab);
  codes += (pass - kChains / 2) * kRowsPerPass * p.ldb;
  for (int r = 0; r < kRowsPerPass; ++r, codes += p.ldb)
    for (int line = 0; line < kSlab; line += 64) prefetch_l2(codes + line);
}

void run_panel(const Fp8GemmParams& p, const Fp8GemmChunk& chunk, int64_t n0) {
  static thread_local Panel panel;
  static thread_local Levels levels;
  alignas(64) static thread_local uint8_t staging[kCols * kSlab];
  alignas(64) float weights[4 * kGroupsPerSlab * kCols];
  alignas(64) float sums[kMaxRows * kCols];
  std::memset(sums, 0, chunk.num_rows * kCols * sizeof(float));
  I seen[kVecs];
  for (I& s : seen) s = zero_bytes();

  const RowTiles tiles(chunk.num_rows, kTileRows);
  const MultiplyFn larger = multiply_for(tiles.base + 1), smaller = multiply_for(tiles.base);
  for (int64_t s = 0; s < num_slabs(p); ++s) {
    const Slab slab(p, s);
    const float* sf = block_sf(p, n0, slab.k0);
    panel.fill(CodeTile(p, n0, kCols, slab, staging), slab, seen);
    const float* a = chunk.a + slab.k0 * chunk.num_rows;
    for (int pass = 0; pass < kChains; ++pass) {
      prefetch_next(p, n0, slab, pass);
      panel.decode(chain_of_pass(pass), slab.groups, sf, weights);
      const bool is_last = pass == kChains - 1;
      const int num_partners = is_last ? 5 : __builtin_ctz(pass + 1);
      for (int64_t t = 0; t < tiles.count; ++t) {
        const int64_t at = tiles.begin(t) * kCols;
        const float* const partners[] = {levels.level[0] + at, levels.level[1] + at, levels.level[2] + at,
                                         levels.level[3] + at, sums + at};
        float* out = is_last ? sums + at : levels.level[num_partners] + at;
        (t < tiles.larger ? larger : smaller)(a, weights, slab.groups, partners, num_partners, out);
        a += tiles.rows(t) * 4 * slab.groups;
      }
    }
  }
  uint64_t nan = 0;
  for (int v = 0; v < kVecs; ++v) nan |= uint64_t{nan_lanes(seen[v])} << (v * kLanes);
  finish(p, chunk, n0, nan, sums);
}

}  // namespace
