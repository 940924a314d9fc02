// Matrix products of bfloat16 operands, two multiply-adds per lane and instruction. Part of gemm_kernel.h;
// compiled where the instruction set has vdpbf16ps (docs/adr/0011).
//
// Takes b of e4m3 codes or bfloat16, and rows of a that bfloat16 holds exactly: bfloat16, or e4m3 codes and
// their scale factors. Rows of float32 become two rows of bfloat16, 16 bits in all, whose sums are added.
// Bound: the DRAM rate of b for few rows, the rate of vdpbf16ps beyond.
//
// A vector holds eight columns of K of four rows of b, so that a 4 x 4 transpose of 128-bit lanes is all that
// a line of b needs, and eight elements of a are broadcast as they stand in memory.
//
// Numerics for one element of d: every product is exact in float32. Per 128 columns of K there are four
// chains: chain c sums the pairs of columns with k % 8 / 2 == c, k ascending, as vdpbf16ps does (it rounds to
// nearest even and takes subnormal numbers for zero). A chain times the scale factors is added to its total
// by one fused multiply-add; at the end the totals are added as (0 + 2) + (1 + 3).
#pragma once

#include "cpu/gemm_bf16_pack.h"

namespace {

constexpr int kBf16Cols = 16;                // of d in a register tile
constexpr int kTileVectors = kBf16Cols / 4;  // of b
constexpr int kBf16Slab = 512;               // columns of K whose weights, 16 KB, stay in L1

// out[u]: 128-bit lane r is unit u of row r.
MOELA_INLINE void transpose_lanes(const uint8_t* p, int64_t ld, I out[4]) {
  const I a = load_words(p), b = load_words(p + ld), c = load_words(p + 2 * ld), d = load_words(p + 3 * ld);
  const I ab_low = _mm512_shuffle_i32x4(a, b, 0x44), ab_high = _mm512_shuffle_i32x4(a, b, 0xEE);
  const I cd_low = _mm512_shuffle_i32x4(c, d, 0x44), cd_high = _mm512_shuffle_i32x4(c, d, 0xEE);
  out[0] = _mm512_shuffle_i32x4(ab_low, cd_low, 0x88);
  out[1] = _mm512_shuffle_i32x4(ab_low, cd_low, 0xDD);
  out[2] = _mm512_shuffle_i32x4(ab_high, cd_high, 0x88);
  out[3] = _mm512_shuffle_i32x4(ab_high, cd_high, 0xDD);
}

// A line of four rows of b as vectors of eight columns: Reader<Codec>::kVectors of them, in the order of K.
template <class Codec>
struct Bf16Reader;

template <>
struct Bf16Reader<E4m3Codec> {
  static constexpr int kVectors = 8;
  MOELA_INLINE void line(const uint8_t* p, int64_t ld, I out[kVectors]) const {
    I codes[4];
    transpose_lanes(p, ld, codes);
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) {
      const I low = _mm512_permutex2var_epi8(low0, codes[u], low1);
      I high = _mm512_permutex2var_epi8(high0, codes[u], high1);
      high = _mm512_ternarylogic_epi32(high, codes[u], sign, 0xF8);  // high | (codes & sign)
      out[2 * u] = _mm512_unpacklo_epi8(low, high);
      out[2 * u + 1] = _mm512_unpackhi_epi8(low, high);
    }
  }
  I low0 = _mm512_load_si512(kE4m3Tables.low), low1 = _mm512_load_si512(kE4m3Tables.low + 64);
  I high0 = _mm512_load_si512(kE4m3Tables.high), high1 = _mm512_load_si512(kE4m3Tables.high + 64);
  I sign = _mm512_set1_epi8(static_cast<char>(0x80));
};

template <>
struct Bf16Reader<BFloat16Codec> {
  static constexpr int kVectors = 4;
  MOELA_INLINE void line(const uint8_t* p, int64_t ld, I out[kVectors]) const { transpose_lanes(p, ld, out); }
};

// Up to kBf16Cols rows of b and the columns [k0, k0 + cols) where they are whole blocks and sixteen rows,
// else a copy in `staging` with zeros around it.
template <class Codec>
struct Bf16Tile {
  static constexpr int64_t kElement = sizeof(typename Codec::Element);
  Bf16Tile(const GemmProblem& p, int64_t n0, int64_t rows, int64_t k0, int64_t cols, uint8_t* staging)
      : codes(row_of_b(p, n0) + k0 * kElement), ld(p.stride_bn * kElement) {
    if (rows == kBf16Cols && cols % kBlock == 0) return;
    std::memset(staging, 0, kBf16Cols * kBf16Slab * kElement);
    for (int64_t n = 0; n < rows; ++n)
      std::memcpy(staging + n * kBf16Slab * kElement, codes + n * ld, cols * kElement);
    codes = staging;
    ld = kBf16Slab * kElement;
  }
  const uint8_t* codes;
  int64_t ld;  // bytes
};

MOELA_INLINE F multiply_pairs(F sums, I a, I b) {
  return _mm512_dpbf16_ps(sums, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}
MOELA_INLINE I broadcast_step(const uint16_t* a) {
  I x = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(a)));
  asm("" : "+v"(x));  // else gcc 12 loads it again for every product
  return x;
}

// What all products of a tile's slab share.
struct Bf16Slab {
  const uint16_t* a;     // of the first row tile
  const float* factors;  // of the first row
  const float* sf;       // of b, one per block
  int64_t blocks;
};

// totals[row][vector] += kRows rows of a times vectors [v0, v0 + kVectors) of the tile. add_block(b, a, acc)
// adds the products of block b to acc.
template <int kRows, int kVectors, class AddBlock>
MOELA_INLINE void multiply_blocks(const Bf16Slab& slab, int v0, F* totals, const AddBlock& add_block) {
  F total[kRows][kVectors];
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) total[m][v] = totals[m * kTileVectors + v0 + v];
  const uint16_t* a = slab.a;
  for (int64_t b = 0; b < slab.blocks; ++b, a += kBlock * kRows) {
    F acc[kRows][kVectors];
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) acc[m][v] = zero();
    add_block(b, a, acc);
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      const F factor = set1(slab.sf[b] * slab.factors[m * kBlocksPerSlab + b]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) total[m][v] = fma(acc[m][v], factor, total[m][v]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) totals[m * kTileVectors + v0 + v] = total[m][v];
}

// Up to kBf16Rows rows: weights go from the codec straight into products, eight rows of b side by side.
template <class Codec, int kRows>
__attribute__((noinline)) void multiply_directly(const Bf16Slab& slab, const Bf16Tile<Codec>& tile,
                                                 Prefetcher& next, F* totals) {
  constexpr int kVectors = Bf16Reader<Codec>::kVectors, kLines = kBlock / kBf16Step / kVectors, kGroups = 2;
  const Bf16Reader<Codec> reader;
  Prefetcher ahead = next;
  for (int v0 = 0; v0 < kTileVectors; v0 += kGroups)
    multiply_blocks<kRows, kGroups>(
        slab, v0, totals, [&](int64_t b, const uint16_t* a, F(&acc)[kRows][kGroups]) {
          const uint8_t* codes = tile.codes + v0 * 4 * tile.ld + b * kLines * kLine;
#pragma GCC unroll 4
          for (int line = 0; line < kLines; ++line) {
#pragma GCC unroll 2
            for (int g = 0; g < kGroups; ++g) {
              const uint8_t* p = codes + g * 4 * tile.ld + line * kLine;
              for (int r = 0; r < 4; ++r)
                prefetch_l1(p + r * tile.ld + 512);  // from L2, where `ahead` put it
              ahead.step(4);
              I w[kVectors];
              reader.line(p, tile.ld, w);
#pragma GCC unroll 8
              for (int u = 0; u < kVectors; ++u)
#pragma GCC unroll 2
                for (int m = 0; m < kRows; ++m)
                  acc[m][g] = multiply_pairs(
                      acc[m][g], broadcast_step(a + ((line * kVectors + u) * kRows + m) * kBf16Step), w[u]);
            }
          }
        });
  next = ahead;
}

// Weights of a slab, decoded once for all rows: [k / 8][vector].
struct Bf16Panel {
  template <class Codec>
  void fill(const Bf16Tile<Codec>& tile, int64_t blocks, Prefetcher& next) {
    constexpr int kVectors = Bf16Reader<Codec>::kVectors;
    const Bf16Reader<Codec> reader;
    Prefetcher ahead = next;
    for (int64_t step = 0; step < blocks * (kBlock / kBf16Step); step += kVectors)
      for (int v = 0; v < kTileVectors; ++v) {
        ahead.step(4);
        I out[kVectors];
        reader.line(tile.codes + v * 4 * tile.ld + step / kVectors * kLine, tile.ld, out);
#pragma GCC unroll 8
        for (int u = 0; u < kVectors; ++u) w[step + u][v] = out[u];
      }
    next = ahead;
  }
  I w[kBf16Slab / kBf16Step][kTileVectors];
};

template <int kRows>
__attribute__((noinline)) void multiply_panel(const Bf16Slab& slab, const Bf16Panel& panel, F* totals) {
  multiply_blocks<kRows, kTileVectors>(slab, 0, totals,
                                       [&](int64_t b, const uint16_t* a, F(&acc)[kRows][kTileVectors]) {
                                         constexpr int kSteps = kBlock / kBf16Step;
                                         const I(*weights)[kTileVectors] = panel.w + b * kSteps;
#pragma GCC unroll 4
                                         for (int step = 0; step < kSteps; ++step) {
                                           I w[kTileVectors];
#pragma GCC unroll 4
                                           for (int v = 0; v < kTileVectors; ++v) {
                                             w[v] = weights[step][v];
                                             asm("" : "+v"(w[v]));
                                           }
#pragma GCC unroll 2
                                           for (int m = 0; m < kRows; ++m) {
                                             const I x = broadcast_step(a + (step * kRows + m) * kBf16Step);
#pragma GCC unroll 4
                                             for (int v = 0; v < kTileVectors; ++v)
                                               acc[m][v] = multiply_pairs(acc[m][v], x, w[v]);
                                           }
                                         }
                                       });
}

// sums[0 .. 3] of a vector of totals: (0 + 2) + (1 + 3) of each quarter.
MOELA_INLINE void add_quarters(F x, float* sums) {
  x = add(x, _mm512_permute_ps(x, 0x4E));
  x = add(x, _mm512_permute_ps(x, 0xB1));
  _mm_storeu_ps(sums, _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, x)));
}

constexpr float kOnes[kBlocksPerSlab] = {1, 1, 1, 1, 1, 1, 1, 1};

// Totals of a tile: rows [n0, n0 + rows) of b, which share their scale factors.
template <class Codec>
void multiply_tile(const GemmChunk& chunk, int64_t n0, int64_t rows, Prefetcher& next, F* totals) {
  static thread_local Bf16Panel panel;
  alignas(64) static thread_local uint8_t staging[kBf16Cols * kBf16Slab * sizeof(typename Codec::Element)];
  const GemmProblem& p = *chunk.problem;
  const int64_t num_rows = chunk.num_rows * num_terms(p);
  const RowTiles tiles(num_rows, kBf16Rows);
  const bool is_direct = num_rows <= kBf16Rows;
  std::memset(totals, 0, num_rows * kTileVectors * sizeof(F));
  for (int64_t k0 = 0; k0 < p.K; k0 += kBf16Slab) {
    next.begin_slab();
    const PackedSlab packed(chunk, k0 / kSlab);
    const int64_t first = k0 - packed.k0, cols = min_of(kBf16Slab, p.K - k0), blocks = ceil_div(cols, kBlock);
    const Bf16Tile<Codec> tile(p, n0, rows, k0, cols, staging);
    const float* sf = Codec::kHasSf ? sf_of_row(p, n0, k0) : kOnes;
    if (!is_direct) panel.fill(tile, blocks, next);
    for (int64_t t = 0; t < tiles.count; ++t) {
      const int64_t m = tiles.begin(t), rows_of_tile = tiles.rows(t);
      const Bf16Slab slab = {.a = packed.a + m * packed.padded + first * rows_of_tile,
                             .factors = packed.factors + m * kBlocksPerSlab + first / kBlock,
                             .sf = sf,
                             .blocks = blocks};
      F* to = totals + m * kTileVectors;
      if (is_direct) {
        rows_of_tile == 1 ? multiply_directly<Codec, 1>(slab, tile, next, to)
                          : multiply_directly<Codec, 2>(slab, tile, next, to);
      } else {
        rows_of_tile == 1 ? multiply_panel<1>(slab, panel, to) : multiply_panel<2>(slab, panel, to);
      }
    }
  }
}

template <class Codec>
void tile_sums(const GemmChunk& chunk, const Columns& columns, float* sums) {
  static thread_local F totals[2 * kMaxRows * kTileVectors];
  const GemmProblem& p = *chunk.problem;
  const int terms = num_terms(p);
  for (int64_t n = 0, rows; n < columns.count; n += rows) {
    const int64_t n0 = columns.n0 + n;
    rows = min_of(kBf16Cols, columns.count - n);
    if (Codec::kHasSf) rows = min_of(rows, kBlock - n0 % kBlock);
    // The tile that comes next, while this one is read.
    Prefetcher next(row_of_b(p, n0 + rows), row_of_b(p, columns.n0 + columns.count),
                    static_cast<const uint8_t*>(columns.next));
    multiply_tile<Codec>(chunk, n0, rows, next, totals);
    for (int64_t m = 0; m < chunk.num_rows; ++m) {
      float row[kBf16Cols];
      for (int v = 0; v < kTileVectors; ++v) {
        const F* total = totals + m * terms * kTileVectors + v;
        add_quarters(terms == 1 ? *total : add(total[0], total[kTileVectors]), row + v * 4);
      }
      std::memcpy(sums + m * kCols + n, row, rows * sizeof(float));
    }
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
