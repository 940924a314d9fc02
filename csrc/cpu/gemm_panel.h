// Matrix products for many rows of a: a panel of weights. Part of gemm_kernel.h, which has the numerics.
//
// Bound: the multiply-add rate. A [kCols, 1024] tile of b is transposed once into a panel of words, columns
// of d side by side in the lanes. Then, chain by chain, the weights of one chain are decoded into L1 and
// multiplied with every row tile of a. (A panel of decoded weights is four times larger than one of e4m3 and
// falls out of L1: 28 cycles per 64 weights against 21, Zen 4.)
#pragma once

#include "cpu/gemm_kernel.h"

namespace {

// The order in which a tile computes its chains: 0, 8, 4, 12, 2 ... Each then finds the partner that the tree
// adds it to already there, and four partial sums are enough.
constexpr int chain_of_pass(int pass) {
  return (pass & 1) << 3 | (pass & 2) << 1 | (pass & 4) >> 1 | (pass & 8) >> 3;
}

constexpr int kSteps = kSlab / kChains;  // columns of a chain in a slab

// [pass][row tile][kPerWord * group + i][row of the tile]: what is multiplied, in its order.
template <class Codec>
void pack_for_panel(const GemmChunk& chunk, const Slab<Codec>& slab, float* out) {
  constexpr int kWord = Codec::kPerWord;
  const RowTiles tiles(chunk.num_rows, kTileRows);
  alignas(64) float rows[kTileRows][kSlab];
  for (int64_t t = 0; t < tiles.count; ++t) {
    const int64_t num_rows = tiles.rows(t);
    for (int64_t m = 0; m < num_rows; ++m)
      load_row(*chunk.problem, slab, chunk.m0 + tiles.begin(t) + m, rows[m]);
    for (int pass = 0; pass < kChains; ++pass) {
      float* to = out + kWord * slab.groups * (pass * chunk.num_rows + tiles.begin(t));
      for (int64_t g = 0; g < slab.groups; ++g, to += kWord * num_rows) {
        const int64_t k = g * kGroup<Codec> + kWord * chain_of_pass(pass);
        for (int64_t m = 0; m < num_rows; ++m)
          for (int i = 0; i < kWord; ++i) to[i * num_rows + m] = rows[m][k + i];
      }
    }
  }
}

// The scale factors of a slab, one for each column of d: those of two blocks may meet in a task.
struct PanelSf {
  PanelSf(const GemmProblem& p, const Columns& columns, int64_t k0) {
    if (p.sf_b == nullptr) return;
    const int64_t blocks = min_of(kSlab / kBlock, ceil_div(p.K - k0, kBlock));
    for (int64_t n = 0; n < kCols; ++n) {
      const float* sf = sf_of_row(p, columns.n0 + min_of(n, columns.count - 1), k0);
      for (int64_t block = 0; block < blocks; ++block) {
        // 2^120 of decode_tiny goes into the scale factor, unless that might overflow.
        const bool is_large = __builtin_fabsf(sf[block]) >= 0x1p8f;
        first[block][n] = is_large ? kUntiny : sf[block] * kUntiny;
        second[block][n] = is_large ? sf[block] : 1.f;
        any_large |= is_large;
      }
    }
  }
  bool any_large = false;
  alignas(64) float first[kSlab / kBlock][kCols];
  alignas(64) float second[kSlab / kBlock][kCols];
};

// Lane l of words[chain][group][v]: the word of row v * kLanes + l of the tile that holds columns
// kGroup * group + kPerWord * chain ...
template <class Codec>
struct Panel {
  void fill(const CodeTile<Codec>& tile, const Slab<Codec>& slab, [[maybe_unused]] I* seen) {
    for (int64_t g = 0; g < slab.groups; ++g)
      for (int v = 0; v < kVecs; ++v)
        for (int chain = 0; chain < kChains; chain += kLanes) {
          I q[kLanes];
          load_quads(tile.codes + v * kLanes * tile.ld + g * kLine + 4 * chain, tile.ld, q);
#pragma GCC unroll 16
          for (int j = 0; j < kLanes; ++j) {
            if constexpr (Codec::kHasSf) seen[v] = note_nan(seen[v], q[j]);
            words[chain + j][g][v] = q[j];
          }
        }
  }

  // The weights of one chain as float32, into weights[kPerWord * group + i][kCols].
  void decode(int chain, int64_t groups, [[maybe_unused]] const PanelSf& sf, float* weights) const {
    for (int64_t g = 0; g < groups; ++g) {
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        [[maybe_unused]] F first, second;
        if constexpr (Codec::kHasSf) {
          first = load(sf.first[g / (kBlock / kGroup<Codec>)] + v * kLanes);
          second = load(sf.second[g / (kBlock / kGroup<Codec>)] + v * kLanes);
        }
#pragma GCC unroll 4
        for (int i = 0; i < Codec::kPerWord; ++i) {
          F w = Codec::decode(words[chain][g][v], i);
          if constexpr (Codec::kHasSf) {
            w = mul(w, first);
            if (sf.any_large) w = mul(w, second);
          }
          store(weights + (g * Codec::kPerWord + i) * kCols + v * kLanes, w);
        }
      }
    }
  }

  alignas(64) I words[kChains][kSlab / kGroup<Codec>][kVecs];
};

// One chain of kRows rows of a, plus the partial sums `partners`, into `out`; all [kRows][kCols]. Without the
// pin gcc 12 loads a weight again in every multiply-add (31 against 90 GFLOP/s, AVX2).
template <int kRows>
__attribute__((noinline)) void multiply_chain(const float* a, const float* weights, int64_t steps,
                                              const float* const* partners, int num_partners, float* out) {
  F acc[kRows][kVecs];
#pragma GCC unroll 32
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) acc[m][v] = zero();
  for (int64_t k = 0; k < steps; k += 4) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      F w[kVecs];
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        w[v] = load(weights + (k + i) * kCols + v * kLanes);
        pin(w[v]);
      }
#pragma GCC unroll 32
      for (int m = 0; m < kRows; ++m) {
        const F x = set1(a[(k + i) * kRows + m]);
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
template <class Codec>
MOELA_INLINE void prefetch_next(const GemmProblem& p, const Columns& columns, int64_t k0, int pass) {
  if (pass < kChains / 2) return;
  constexpr int64_t kElement = sizeof(typename Codec::Element), kRowsPerPass = kCols / (kChains / 2);
  const bool is_last = k0 + kSlab >= p.K;
  const uint8_t* codes =
      is_last ? static_cast<const uint8_t*>(columns.next) : row_of_b(p, columns.n0) + (k0 + kSlab) * kElement;
  const int64_t ld = p.stride_bn * kElement;
  codes += (pass - kChains / 2) * kRowsPerPass * ld;
  for (int r = 0; r < kRowsPerPass; ++r, codes += ld)
    for (int line = 0; line < kSlab * kElement; line += kLine) prefetch_l2(codes + line);
}

// Multiplies one chain after the other with every row of a; decode(chain, weights) makes its weights.
template <class Decode, class Prefetch>
void multiply_slab(const float* a, int64_t num_rows, int64_t steps, const Decode& decode,
                   const Prefetch& prefetch, float* sums) {
  static thread_local Levels levels;
  alignas(64) float weights[kSteps * kCols];
  const RowTiles tiles(num_rows, kTileRows);
  const MultiplyFn larger = multiply_for(tiles.base + 1), smaller = multiply_for(tiles.base);
  for (int pass = 0; pass < kChains; ++pass) {
    prefetch(pass);
    decode(chain_of_pass(pass), weights);
    const bool is_last = pass == kChains - 1;
    const int num_partners = is_last ? 5 : __builtin_ctz(pass + 1);
    for (int64_t t = 0; t < tiles.count; ++t) {
      const int64_t at = tiles.begin(t) * kCols;
      const float* const partners[] = {levels.level[0] + at, levels.level[1] + at, levels.level[2] + at,
                                       levels.level[3] + at, sums + at};
      float* out = is_last ? sums + at : levels.level[num_partners] + at;
      (t < tiles.larger ? larger : smaller)(a, weights, steps, partners, num_partners, out);
      a += tiles.rows(t) * steps;
    }
  }
}

template <class Codec>
void panel_sums(const GemmChunk& chunk, const Columns& columns, float* sums) {
  static thread_local Panel<Codec> panel;
  alignas(64) static thread_local uint8_t staging[kCols * kSlab * sizeof(typename Codec::Element)];
  const GemmProblem& p = *chunk.problem;
  std::memset(sums, 0, chunk.num_rows * kCols * sizeof(float));
  I seen[kVecs];
  for (I& s : seen) s = zero_bytes();
  for (int64_t s = 0; s < num_slabs(p); ++s) {
    const Slab<Codec> slab(p, s);
    panel.fill(CodeTile<Codec>(p, columns.n0, columns.count, kCols, slab, staging), slab, seen);
    const PanelSf sf(p, columns, slab.k0);
    multiply_slab(
        chunk.a + slab.k0 * chunk.num_rows, chunk.num_rows, slab.groups * Codec::kPerWord,
        [&](int chain, float* weights) { panel.decode(chain, slab.groups, sf, weights); },
        [&](int pass) { prefetch_next<Codec>(p, columns, slab.k0, pass); }, sums);
  }
  uint64_t nan = 0;
  for (int v = 0; v < kVecs; ++v) nan |= uint64_t{nan_lanes(seen[v])} << (v * kLanes);
  spread_nan(nan, chunk.num_rows, sums);
}

}  // namespace
