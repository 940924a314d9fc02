// Matrix products of bfloat16 operands, two multiply-adds per lane and instruction. Part of gemm_kernel.h;
// compiled where the instruction set has vdpbf16ps (docs/adr/0011).
//
// Takes b of e4m3 codes or bfloat16, and rows of a that bfloat16 holds exactly: bfloat16, or e4m3 codes and
// their scale factors.
// Bound: the DRAM rate of b for few rows, the rate of vdpbf16ps beyond.
//
// A vector holds a pair of columns of K of sixteen rows of b. The first rows of a are multiplied while a
// vector is in a register; where there are more, it is kept in a panel for them.
//
// Numerics for one element of d: every product is exact in float32. Per 128 columns of K there are two
// chains: chain c sums the pairs of columns with k % 4 / 2 == c, k ascending, as vdpbf16ps does (it rounds to
// nearest even and takes subnormal numbers for zero). Their sum times the scale factors is added to the total
// by one fused multiply-add.
#pragma once

#include "cpu/gemm_bf16_reader.h"

namespace {

constexpr int kBf16Vecs = 2;  // of sixteen rows of b in a tile: the columns of a task
static_assert(kBf16Vecs * kBf16Lanes == kCols);
constexpr int kPairs = kBlock / 2;

MOELA_INLINE F multiply_pairs(F sums, I a, I b) {
  return _mm512_dpbf16_ps(sums, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}
MOELA_INLINE I broadcast_pair(const uint32_t* a) {
  I x = _mm512_set1_epi32(static_cast<int>(*a));
  asm("" : "+v"(x));  // else gcc 12 loads it again for every product
  return x;
}

// What all products of a tile's slab share.
struct Bf16Slab {
  const uint32_t* a;     // [pair][row] of the row tile
  const float* factors;  // of its first row
  const float* sf;       // of b, one per block
  int64_t blocks;
};

// The products of kRows rows and sixteen rows of b, straight from the codec; `kept`, if kKeep, gets its
// vectors, kBf16Vecs apart.
template <class Codec, int kRows, bool kKeep>
__attribute__((noinline)) void multiply_decoded(const Bf16Slab& slab, const Bf16Tile<Codec>& tile,
                                                Prefetcher& next, I* kept, F* totals) {
  using Reader = Bf16Reader<Codec>;
  constexpr int kLinesOfBlock = kPairs / Reader::kPairs / kSegments;
  const Reader reader;
  Prefetcher ahead = next;
  I lanes[2][kBf16Lanes];
  const uint8_t *line = tile.codes, *last = line + (slab.blocks * kLinesOfBlock - 1) * kLine;
  for (int q = 0; q < kSegments; ++q) load_lanes(line, tile.ld, q, lanes[0]);
  int front = 0;
  const uint32_t* a = slab.a;
  for (int64_t b = 0; b < slab.blocks; ++b) {
    F acc[kRows][2];
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) acc[m][0] = acc[m][1] = zero();
    for (int l = 0; l < kLinesOfBlock; ++l) {
      line = line < last ? line + kLine : last;
      for (int q = 0; q < kSegments; ++q) {
        if constexpr (!kKeep) ahead.step(kBf16Lanes / kSegments);
        load_lanes(line, tile.ld, q, lanes[front ^ 1]);  // while the line before it is multiplied
        I w[Reader::kPairs];
        reader.pairs(lanes[front] + 4 * q, w);
#pragma GCC unroll 8
        for (int i = 0; i < Reader::kPairs; ++i) {
          if constexpr (kKeep) kept[i * kBf16Vecs] = w[i];
#pragma GCC unroll 8
          for (int m = 0; m < kRows; ++m)
            acc[m][i % 2] = multiply_pairs(acc[m][i % 2], broadcast_pair(a + i * kRows + m), w[i]);
        }
        a += Reader::kPairs * kRows;
        if constexpr (kKeep) kept += Reader::kPairs * kBf16Vecs;
      }
      front ^= 1;
    }
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      const F factor = set1(slab.sf[b] * slab.factors[m * kBlocksPerSlab + b]);
      totals[m * kBf16Vecs] = fma(add(acc[m][0], acc[m][1]), factor, totals[m * kBf16Vecs]);
    }
  }
  next = ahead;
}

// The products of kRows rows and a panel of weights, [pair][vector].
template <int kRows>
__attribute__((noinline)) void multiply_panel(const Bf16Slab& slab, const I* w, F* totals) {
  const uint32_t* a = slab.a;
  for (int64_t b = 0; b < slab.blocks; ++b) {
    F acc[2][kRows][kBf16Vecs];
#pragma GCC unroll 2
    for (int c = 0; c < 2; ++c)
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 2
        for (int v = 0; v < kBf16Vecs; ++v) acc[c][m][v] = zero();
#pragma GCC unroll 2
    for (int i = 0; i < kPairs; i += 2) {
#pragma GCC unroll 2
      for (int c = 0; c < 2; ++c) {
        I weights[kBf16Vecs];
#pragma GCC unroll 2
        for (int v = 0; v < kBf16Vecs; ++v) {
          weights[v] = w[c * kBf16Vecs + v];
          asm("" : "+v"(weights[v]));
        }
#pragma GCC unroll 8
        for (int m = 0; m < kRows; ++m) {
          const I x = broadcast_pair(a + c * kRows + m);
#pragma GCC unroll 2
          for (int v = 0; v < kBf16Vecs; ++v) acc[c][m][v] = multiply_pairs(acc[c][m][v], x, weights[v]);
        }
      }
      w += 2 * kBf16Vecs;
      a += 2 * kRows;
    }
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      const F factor = set1(slab.sf[b] * slab.factors[m * kBlocksPerSlab + b]);
#pragma GCC unroll 2
      for (int v = 0; v < kBf16Vecs; ++v) {
        F& total = totals[m * kBf16Vecs + v];
        total = fma(add(acc[0][m][v], acc[1][m][v]), factor, total);
      }
    }
  }
}

using PanelFn = void (*)(const Bf16Slab&, const I*, F*);
template <int kRows = kBf16PanelRows>
PanelFn panel_for(int64_t rows) {
  if constexpr (kRows == 1) {
    return multiply_panel<1>;
  } else {
    return rows >= kRows ? multiply_panel<kRows> : panel_for<kRows - 1>(rows);
  }
}

template <class Codec>
using DecodedFn = void (*)(const Bf16Slab&, const Bf16Tile<Codec>&, Prefetcher&, I*, F*);
template <class Codec, int kRows = kBf16FirstRows>
DecodedFn<Codec> decoded_for(int64_t rows) {
  if constexpr (kRows == 1) {
    return multiply_decoded<Codec, 1, false>;
  } else {
    return rows >= kRows ? multiply_decoded<Codec, kRows, false> : decoded_for<Codec, kRows - 1>(rows);
  }
}

// Prefetches one of `shares` of the next slab of b, `bytes` of kCols rows from p on. A whole tile ahead, as
// the Prefetcher goes for few rows, many rows of a would push it out of L2 again.
inline void prefetch_share(const uint8_t* p, int64_t ld, int64_t bytes, int64_t share, int64_t shares) {
  for (int64_t n = share * kCols / shares; n < (share + 1) * kCols / shares; ++n)
    for (int64_t byte = 0; byte < bytes; byte += kLine) prefetch_l2(p + n * ld + byte);
}

constexpr float kOnes[kBlocksPerSlab] = {1, 1, 1, 1, 1, 1, 1, 1};

// Totals of a tile: rows [n0, n0 + rows) of b, which share their scale factors. `after`: what is read then.
template <class Codec>
void multiply_tile(const GemmChunk& chunk, int64_t n0, int64_t rows, const uint8_t* after, Prefetcher& next,
                   F* totals) {
  constexpr int64_t kElement = sizeof(typename Codec::Element);
  alignas(64) static thread_local I panel[kBf16Slab / 2 * kBf16Vecs];
  alignas(64) static thread_local uint8_t staging[kBf16Lanes * kSlab * kElement];
  const GemmProblem& p = *chunk.problem;
  const Bf16RowTiles tiles(chunk.num_rows);
  const bool has_panel = tiles.count > 1;
  const DecodedFn<Codec> decoded =
      has_panel ? multiply_decoded<Codec, kBf16FirstRows, true> : decoded_for<Codec>(chunk.num_rows);
  const int64_t step = has_panel ? kBf16Slab : kSlab;
  std::memset(totals, 0, chunk.num_rows * kBf16Vecs * sizeof(F));
  for (int64_t k0 = 0; k0 < p.K; k0 += step) {
    next.begin_slab();
    const PackedSlab packed(chunk, k0 / kSlab);
    const int64_t first = k0 - packed.k0, cols = min_of(step, p.K - k0), blocks = ceil_div(cols, kBlock);
    const float* sf = Codec::kHasSf ? sf_of_row(p, n0, k0) : kOnes;
    // The next slab of these rows of b, or the first of the next ones.
    const uint8_t* ahead = k0 + step < p.K ? row_of_b(p, n0) + (k0 + step) * kElement : after;
    const auto slab_of = [&](int64_t t) {
      const int64_t m = tiles.begin(t);
      return Bf16Slab{.a = packed.a + (first * chunk.num_rows + m * blocks * kBlock) / 2,
                      .factors = packed.factors + m * kBlocksPerSlab + first / kBlock,
                      .sf = sf,
                      .blocks = blocks};
    };
    for (int v = 0; v < kBf16Vecs; ++v) {
      const int64_t n = v * kBf16Lanes, count = min_of(kBf16Lanes, rows - n);
      if (count <= 0 && !has_panel) break;
      const Bf16Tile<Codec> tile(p, n0 + n, count > 0 ? count : 0, k0, cols, staging);
      decoded(slab_of(0), tile, next, panel + v, totals + v);
    }
    for (int64_t t = 1; t < tiles.count; ++t) {
      prefetch_share(ahead, p.stride_bn * kElement, kBf16Slab * kElement, t - 1, tiles.count - 1);
      panel_for(tiles.rows(t))(slab_of(t), panel, totals + tiles.begin(t) * kBf16Vecs);
    }
  }
}

template <class Codec>
void tile_sums(const GemmChunk& chunk, const Columns& columns, float* sums) {
  static thread_local F totals[kMaxRows * kBf16Vecs];
  const GemmProblem& p = *chunk.problem;
  for (int64_t n = 0, rows; n < columns.count; n += rows) {
    const int64_t n0 = columns.n0 + n;
    rows = columns.count - n;
    if (Codec::kHasSf) rows = min_of(rows, kBlock - n0 % kBlock);
    const uint8_t *end = row_of_b(p, columns.n0 + columns.count),
                  *beyond = static_cast<const uint8_t*>(columns.next);
    // The tile that comes next, while this one is read.
    const uint8_t* after = row_of_b(p, n0 + rows);
    Prefetcher next(after, end, beyond);
    multiply_tile<Codec>(chunk, n0, rows, after < end ? after : beyond, next, totals);
    for (int64_t m = 0; m < chunk.num_rows; ++m)
      std::memcpy(sums + m * kCols + n, totals + m * kBf16Vecs, rows * sizeof(float));
  }
}

void bf16_sums(const GemmChunk& chunk, const Columns& columns, float* sums) {
  if (chunk.problem->b_dtype == Dtype::kE4m3) {
    tile_sums<E4m3Codec>(chunk, columns, sums);
  } else {
    tile_sums<BFloat16Codec>(chunk, columns, sums);
  }
}

}  // namespace
