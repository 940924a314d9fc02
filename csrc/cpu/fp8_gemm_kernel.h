// fp8_gemm on the CPU, in the operations of simd.h. Included by every isa_<name>.cpp.
//
// Computes d = (a * sf_a) @ (b * sf_b).T + bias from b as a checkpoint stores it: rows of e4m3 codes.
// Bound: the DRAM rate of b for few rows (fused kernel), the multiply-add rate from about eight rows on (panel).
//
// Lanes are columns of d. Sixteen codes of kLanes rows of b are loaded and their 32-bit words transposed, which
// puts four consecutive k of one column into each lane; decode_tiny makes four vectors of them.
//
// Numerics, the same in both kernels and on every instruction set, for one element of d:
//   per block of 128 columns of K:   even = fma chain over k = 0, 2, 4 ...    odd = the same over k = 1, 3, 5 ...
//                                    total = fma(even, sf, total),  total = fma(odd, sf, total)
//   per 8 blocks:                    sum = sum + total,  total = 0
// Chains of 64 keep the rounding error below 2e-7 of the result for float32 activations (one chain of 128: 2.5e-7 at
// K = 7168; docs/FACTS.md), and two of them hide the latency of the multiply-add.
#pragma once

#include "cpu/convert.h"
#include "cpu/fp8_gemm.h"
#include "cpu/simd.h"

namespace {

using moela::cpu::Fp8GemmChunk;
using moela::cpu::Fp8GemmKernels;
using moela::cpu::Fp8GemmParams;
using moela::plan::Fp8GemmPath;
using moela::plan::Fp8GemmPlan;

constexpr int kBlock = 128;         // columns of K, and rows of b, that share a scale factor
constexpr int kChain = kBlock / 2;  // length of one chain of multiply-adds
constexpr int kBlocksPerSum = 8;

// Register tile of the panel kernel: kPanelRows * kPanelVecs accumulators, the panel's vectors and one broadcast.
#if defined(MOELA_SIMD_AVX512)
constexpr int kPanelRows = 12, kPanelVecs = 2, kFusedRows = 6;
#elif defined(MOELA_SIMD_AVX2)
constexpr int kPanelRows = 6, kPanelVecs = 2, kFusedRows = 4;
#elif defined(MOELA_SIMD_NEON)
constexpr int kPanelRows = 6, kPanelVecs = 4, kFusedRows = 4;
#else
constexpr int kPanelRows = 2, kPanelVecs = 4, kFusedRows = 2;
#endif
constexpr int kPanelCols = kPanelVecs * kLanes;
static_assert(kBlock % kPanelCols == 0, "a task must not straddle two scale factors of b");

// Powers of two that undo each other: weights are value * 2^-120, activations value * 2^60 in a `tiny` chunk.
constexpr float kUntiny = 0x1p120f;
constexpr float kHalfUntiny = 0x1p60f;

inline int64_t num_blocks(const Fp8GemmParams& p) { return (p.K + kBlock - 1) / kBlock; }
inline int64_t min_of(int64_t x, int64_t y) { return x < y ? x : y; }

// Rows of a chunk are cut into tiles of nearly equal size: sixteen rows are 8 + 8, not 12 + 4.
struct RowTiles {
  RowTiles(int64_t num_rows, int max_rows)
      : count(num_rows == 0 ? 0 : (num_rows + max_rows - 1) / max_rows),
        base(count == 0 ? 0 : num_rows / count),
        larger(count == 0 ? 0 : num_rows % count) {}
  int64_t rows(int64_t t) const { return base + (t < larger); }
  int64_t begin(int64_t t) const { return t * base + min_of(t, larger); }
  int64_t count;
  int64_t base;
  int64_t larger;  // this many tiles have one row more
};

inline RowTiles row_tiles(const Fp8GemmPlan& plan, int64_t num_rows) {
  return RowTiles(num_rows, plan.path == Fp8GemmPath::kFused ? kFusedRows : kPanelRows);
}

// --- activations -----------------------------------------------------------------------------------------------

// True if each value is 0, Inf, NaN or within [2^-48, 2^60]: then value * 2^60 does not overflow, and no product with
// a tiny weight (2^-129 ... 2^-111) loses a bit below the smallest subnormal.
bool fits_tiny(const Fp8GemmParams& p, int64_t m0, int64_t num_rows) {
  if (p.a_dtype == Dtype::kE4m3 || p.a_dtype == Dtype::kFloat16) return true;
  uint32_t outside = 0;
  for (int64_t m = m0; m < m0 + num_rows; ++m) {
    const auto check = [&](auto bits_at) {
      for (int64_t k = 0; k < p.K; ++k) {
        const uint32_t magnitude = bits_at(k) & 0x7FFFFFFF, exponent = magnitude >> 23;
        outside |= (magnitude != 0) & (exponent != 255) & (exponent - 79 > 187 - 79);
      }
    };
    if (p.a_dtype == Dtype::kFloat32) {
      const auto* row = static_cast<const uint32_t*>(p.a) + m * p.lda;
      check([&](int64_t k) { return row[k]; });
    } else {
      const auto* row = static_cast<const uint16_t*>(p.a) + m * p.lda;
      check([&](int64_t k) { return static_cast<uint32_t>(row[k]) << 16; });
    }
  }
  return outside == 0;
}

// Packs a for broadcasting: [block][row tile][even k, odd k][64][rows of the tile], zero beyond K.
void pack(const Fp8GemmParams& p, const Fp8GemmPlan& plan, const Fp8GemmChunk& chunk, int64_t begin, int64_t end) {
  [[maybe_unused]] const ExactSubnormals guard;
  const RowTiles tiles = row_tiles(plan, chunk.num_rows);
  const float scale = chunk.tiny ? kHalfUntiny : 1.f;
  alignas(64) float rows[kPanelRows][kBlock];
  for (int64_t block = begin; block < end; ++block) {
    const int64_t k0 = block * kBlock, valid = min_of(kBlock, p.K - k0);
    for (int64_t t = 0; t < tiles.count; ++t) {
      const int64_t num_rows = tiles.rows(t), m0 = chunk.m0 + tiles.begin(t);
      for (int64_t m = 0; m < num_rows; ++m) {
        load_floats(p.a, p.a_dtype, (m0 + m) * p.lda + k0, valid, rows[m]);
        for (int64_t k = valid; k < kBlock; ++k) rows[m][k] = 0.f;
      }
      float* out = chunk.a + (block * chunk.num_rows + tiles.begin(t)) * kBlock;
      for (int odd = 0; odd < 2; ++odd)
        for (int i = 0; i < kChain; ++i)
          for (int64_t m = 0; m < num_rows; ++m) *out++ = rows[m][2 * i + odd] * scale;
    }
    if (chunk.sf_a == nullptr) continue;
    for (int64_t m = 0; m < chunk.num_rows; ++m)
      chunk.sf_a[block * chunk.num_rows + m] =
          p.sf_a[(chunk.m0 + m) * p.sf_a_stride_m + block * p.sf_a_stride_k];
  }
}

// Scale factors of one block: out[m] multiplies the partial sums of row m.
MOELA_INLINE void block_scales(const Fp8GemmParams& p, const Fp8GemmChunk& chunk, int64_t n0, int64_t block,
                               float* out) {
  const float sf_b = p.sf_b[n0 / kBlock * num_blocks(p) + block];
  for (int64_t m = 0; m < chunk.num_rows; ++m)
    out[m] = chunk.sf_a ? chunk.sf_a[block * chunk.num_rows + m] * sf_b : sf_b;
}

// --- weights ---------------------------------------------------------------------------------------------------

// Rows [n0, n0 + kCols) and columns [k0, k0 + 128) of b, where they all exist; else a copy with zeros around it.
template <int kCols>
struct CodeTile {
  CodeTile(const Fp8GemmParams& p, int64_t n0, int64_t k0, uint8_t* staging) {
    const int64_t rows = min_of(kCols, p.N - n0), cols = min_of(kBlock, p.K - k0);
    codes = p.b + n0 * p.ldb + k0;
    ld = p.ldb;
    if (rows == kCols && cols == kBlock) return;
    std::memset(staging, 0, kCols * kBlock);
    for (int64_t n = 0; n < rows; ++n) std::memcpy(staging + n * kBlock, codes + n * ld, cols);
    codes = staging;
    ld = kBlock;
  }
  const uint8_t* codes;
  int64_t ld;
};

template <int kCols>
MOELA_INLINE void prefetch_tile(const Fp8GemmParams& p, int64_t n0, int64_t k0) {
  if (k0 >= p.K) return;
  const int64_t rows = min_of(kCols, p.N - n0);
  for (int64_t n = n0; n < n0 + rows; ++n) {
    prefetch(p.b + n * p.ldb + k0);
    prefetch(p.b + n * p.ldb + k0 + 64);
  }
}

// --- result ----------------------------------------------------------------------------------------------------

// Adds the bias and rounds one row of a task. Columns whose row of b holds a NaN code are NaN.
template <int kCols>
void finish_row(const Fp8GemmParams& p, int64_t m, int64_t n0, const uint32_t* nan, float* sums) {
  const int64_t cols = min_of(kCols, p.N - n0);
  for (int64_t n = 0; n < cols; ++n) {
    if (nan[n / kLanes] >> n % kLanes & 1) sums[n] = __builtin_nanf("");
    if (p.bias) sums[n] += p.bias[n0 + n];
  }
  store_floats(sums, cols, p.d_dtype, p.d, m * p.ldd + n0);
}

// --- fused kernel ----------------------------------------------------------------------------------------------

// One task: kRows rows times kVecs vectors of columns.
template <int kRows, int kVecs, bool kIsTiny>
void run_fused(const Fp8GemmParams& p, const Fp8GemmChunk& chunk, int64_t n0) {
  constexpr int kCols = kVecs * kLanes;
  constexpr int kPrefetchBlocks = 4;
  alignas(64) uint8_t staging[kCols * kBlock];
  F sum[kVecs][kRows], total[kVecs][kRows];
  I seen[kVecs];
  for (int v = 0; v < kVecs; ++v) {
    seen[v] = zero_bytes();
    for (int m = 0; m < kRows; ++m) sum[v][m] = total[v][m] = zero();
  }
  const int64_t blocks = num_blocks(p);
  for (int64_t block = 0; block < blocks; ++block) {
    prefetch_tile<kCols>(p, n0, (block + kPrefetchBlocks) * kBlock);
    const CodeTile<kCols> tile(p, n0, block * kBlock, staging);
    const float* x = chunk.a + block * chunk.num_rows * kBlock;
    F acc[2][kVecs][kRows];
    for (auto& odd : acc)
      for (auto& v : odd)
        for (F& m : v) m = zero();
    for (int k = 0; k < kBlock; k += 16) {
      I q[kVecs][4];
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) load_quads(tile.codes + v * kLanes * tile.ld + k, tile.ld, q[v]);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        F w[kVecs][4];
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) {
          seen[v] = note_nan(seen[v], q[v][j]);
          decode_tiny(q[v][j], w[v]);
        }
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          const float* xi = x + ((i & 1) * kChain + k / 2 + 2 * j + i / 2) * kRows;
#pragma GCC unroll 8
          for (int m = 0; m < kRows; ++m) {
            const F xm = set1(xi[m]);
#pragma GCC unroll 4
            for (int v = 0; v < kVecs; ++v) {
              const F wv = kIsTiny ? w[v][i] : mul(w[v][i], set1(kUntiny));
              acc[i & 1][v][m] = fma(xm, wv, acc[i & 1][v][m]);
            }
          }
        }
      }
    }
    float sf[kRows];
    block_scales(p, chunk, n0, block, sf);
    for (int v = 0; v < kVecs; ++v)
      for (int m = 0; m < kRows; ++m)
        for (int odd = 0; odd < 2; ++odd) {
          const F part = kIsTiny ? mul(acc[odd][v][m], set1(kHalfUntiny)) : acc[odd][v][m];
          total[v][m] = fma(part, set1(sf[m]), total[v][m]);
        }
    if (block % kBlocksPerSum != kBlocksPerSum - 1 && block != blocks - 1) continue;
    for (int v = 0; v < kVecs; ++v)
      for (int m = 0; m < kRows; ++m) {
        sum[v][m] = add(sum[v][m], total[v][m]);
        total[v][m] = zero();
      }
  }
  uint32_t nan[kVecs];
  for (int v = 0; v < kVecs; ++v) nan[v] = nan_lanes(seen[v]);
  for (int m = 0; m < kRows; ++m) {
    alignas(64) float row[kCols];
    for (int v = 0; v < kVecs; ++v) store(row + v * kLanes, sum[v][m]);
    finish_row<kCols>(p, chunk.m0 + m, n0, nan, row);
  }
}

using TaskFn = void (*)(const Fp8GemmParams&, const Fp8GemmChunk&, int64_t n0);

template <bool kIsTiny, int kRows = kFusedRows>
TaskFn fused_task(int64_t num_rows) {
  if constexpr (kRows == 1) {
    return run_fused<1, 2, kIsTiny>;
  } else {
    return num_rows == kRows ? run_fused<kRows, 1, kIsTiny> : fused_task<kIsTiny, kRows - 1>(num_rows);
  }
}

// --- panel kernel ----------------------------------------------------------------------------------------------

// Decodes a tile of b into panel [even k, odd k][64][kPanelCols].
void decode_panel(const CodeTile<kPanelCols>& tile, float* panel, I* seen) {
  const F untiny = set1(kUntiny);
  for (int k = 0; k < kBlock; k += 16) {
#pragma GCC unroll 4
    for (int v = 0; v < kPanelVecs; ++v) {
      I q[4];
      load_quads(tile.codes + v * kLanes * tile.ld + k, tile.ld, q);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        F w[4];
        seen[v] = note_nan(seen[v], q[j]);
        decode_tiny(q[j], w);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          const int row = (i & 1) * kChain + k / 2 + 2 * j + i / 2;
          store(panel + row * kPanelCols + v * kLanes, mul(w[i], untiny));
        }
      }
    }
  }
}

// totals[m] += sf[m] * (a of one block @ panel), for kRows rows.
template <int kRows>
void multiply_panel(const float* a, const float* panel, const float* sf, float* totals) {
  for (int odd = 0; odd < 2; ++odd) {
    F acc[kRows][kPanelVecs];
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < kPanelVecs; ++v) acc[m][v] = zero();
    for (int i = 0; i < kChain; i += 4) {
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u) {
        F w[kPanelVecs];
#pragma GCC unroll 4
        for (int v = 0; v < kPanelVecs; ++v) {
          w[v] = load(panel + u * kPanelCols + v * kLanes);
          pin(w[v]);
        }
#pragma GCC unroll 16
        for (int m = 0; m < kRows; ++m) {
          const F x = set1(a[u * kRows + m]);
#pragma GCC unroll 4
          for (int v = 0; v < kPanelVecs; ++v) acc[m][v] = fma(x, w[v], acc[m][v]);
        }
      }
      a += 4 * kRows;
      panel += 4 * kPanelCols;
    }
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
      const F s = set1(sf[m]);
#pragma GCC unroll 4
      for (int v = 0; v < kPanelVecs; ++v) {
        float* t = totals + m * kPanelCols + v * kLanes;
        store(t, fma(acc[m][v], s, load(t)));
      }
    }
  }
}

using PanelFn = void (*)(const float*, const float*, const float*, float*);

template <int kRows = kPanelRows>
PanelFn panel_tile(int64_t num_rows) {
  if constexpr (kRows == 1) {
    return multiply_panel<1>;
  } else {
    return num_rows == kRows ? multiply_panel<kRows> : panel_tile<kRows - 1>(num_rows);
  }
}

// One task: all rows of the chunk times kPanelCols columns.
void run_panel(const Fp8GemmParams& p, const Fp8GemmPlan& plan, const Fp8GemmChunk& chunk, int64_t n0) {
  constexpr int kMaxRows = 252;
  alignas(64) static thread_local float panel[kBlock * kPanelCols];
  alignas(64) static thread_local float totals[kMaxRows * kPanelCols];
  alignas(64) static thread_local float sums[kMaxRows * kPanelCols];
  alignas(64) uint8_t staging[kPanelCols * kBlock];
  float sf[kMaxRows];
  const int64_t size = chunk.num_rows * kPanelCols;
  std::memset(totals, 0, size * sizeof(float));
  std::memset(sums, 0, size * sizeof(float));
  I seen[kPanelVecs];
  for (I& s : seen) s = zero_bytes();

  const RowTiles tiles = row_tiles(plan, chunk.num_rows);
  const PanelFn larger = panel_tile(tiles.base + 1), smaller = panel_tile(tiles.base);
  const int64_t blocks = num_blocks(p);
  for (int64_t block = 0; block < blocks; ++block) {
    const CodeTile<kPanelCols> tile(p, n0, block * kBlock, staging);
    decode_panel(tile, panel, seen);
    prefetch_tile<kPanelCols>(p, n0, (block + 1) * kBlock);
    block_scales(p, chunk, n0, block, sf);
    for (int64_t t = 0; t < tiles.count; ++t) {
      const int64_t m = tiles.begin(t);
      const float* a = chunk.a + (block * chunk.num_rows + m) * kBlock;
      (t < tiles.larger ? larger : smaller)(a, panel, sf + m, totals + m * kPanelCols);
    }
    if (block % kBlocksPerSum != kBlocksPerSum - 1 && block != blocks - 1) continue;
    for (int64_t i = 0; i < size; ++i) {
      sums[i] += totals[i];
      totals[i] = 0.f;
    }
  }
  uint32_t nan[kPanelVecs];
  for (int v = 0; v < kPanelVecs; ++v) nan[v] = nan_lanes(seen[v]);
  for (int64_t m = 0; m < chunk.num_rows; ++m)
    finish_row<kPanelCols>(p, chunk.m0 + m, n0, nan, sums + m * kPanelCols);
}

// ---------------------------------------------------------------------------------------------------------------

void run(const Fp8GemmParams& p, const Fp8GemmPlan& plan, const Fp8GemmChunk& chunk, int64_t begin, int64_t end) {
  [[maybe_unused]] const ExactSubnormals guard;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t n0 = task * plan.cols_per_task;
    if (plan.path == Fp8GemmPath::kPanel) {
      run_panel(p, plan, chunk, n0);
    } else {
      (chunk.tiny ? fused_task<true> : fused_task<false>)(chunk.num_rows)(p, chunk, n0);
    }
  }
}

constexpr Fp8GemmKernels kFp8GemmKernels = {
    .shape = {.lanes = kLanes, .fused_rows = kFusedRows, .panel_rows = kPanelRows, .panel_cols = kPanelCols},
    .fits_tiny = fits_tiny,
    .pack = pack,
    .run = run,
};

}  // namespace
