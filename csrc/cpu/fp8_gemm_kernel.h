// fp8_gemm on the CPU, in the operations of simd.h. Included by every isa_<name>.cpp.
//
// Computes d = (a * sf_a) @ (b * sf_b).T + bias from b as a checkpoint stores it: rows of e4m3 codes.
// Bound: the DRAM rate of b for few rows, the multiply-add rate from about eight rows on.
//
// One task is kCols columns of d for all rows of the chunk. For each block of 128 columns of K it turns a
// [kCols, 128] tile of b into a panel in L1, columns of d side by side in the lanes, and multiplies every row
// tile of a with it. There are two panels. The code panel holds codes, decoded in registers at each use: best
// for few rows, where the decoding hides behind the multiply-adds. The float panel holds float32, decoded
// once. One or two rows do without.
//
// Numerics, the same with both panels and on every instruction set, for one element of d:
//   per block of 128 columns of K:   even = fma chain over k = 0, 2, 4 ...   odd = the same over k = 1, 3, 5
//   ...
//                                    total = fma(even, sf, total),  total = fma(odd, sf, total)
//   per 8 blocks:                    sum = sum + total,  total = 0
// Chains of 64 keep the rounding error below 2e-7 of the result for float32 activations (one chain of
// 128: 2.5e-7 at K = 7168; docs/FACTS.md).
#pragma once

#include "cpu/convert.h"
#include "cpu/fp8_gemm.h"
#include "cpu/simd.h"

namespace {

using moela::cpu::Fp8GemmChunk;
using moela::cpu::Fp8GemmKernels;
using moela::cpu::Fp8GemmParams;

constexpr int kBlock = 128;  // columns of K, and rows of b, that share a scale factor
constexpr int kBlocksPerSum = 8;

// Register tile: kTileRows * kVecs accumulators, kVecs vectors of b and one broadcast fill the register file.
// Up to kCodePanelRows rows the code panel is the faster one (measured; AVX2 has no registers left to decode
// in).
#if defined(MOELA_SIMD_AVX512)
constexpr int kTileRows = 12, kVecs = 2, kCodePanelRows = 24;
#elif defined(MOELA_SIMD_AVX2)
constexpr int kTileRows = 6, kVecs = 2, kCodePanelRows = 8;
#elif defined(MOELA_SIMD_NEON)
constexpr int kTileRows = 6, kVecs = 4, kCodePanelRows = 6;
#else
constexpr int kTileRows = 2, kVecs = 4, kCodePanelRows = 2;
#endif
constexpr int kCols = kVecs * kLanes;
static_assert(kBlock % kCols == 0, "a task must not straddle two scale factors of b");
constexpr int kMaxRows = 252;  // of a chunk; plan/fp8_gemm.h
static_assert(kMaxRows % kTileRows == 0, "plan_fp8_gemm makes full tiles of a full chunk");

// Powers of two that undo each other: in a `tiny` chunk weights are value * 2^-120 and activations value *
// 2^60.
constexpr float kUntiny = 0x1p120f;
constexpr float kHalfUntiny = 0x1p60f;

inline int64_t num_blocks(const Fp8GemmParams& p) { return (p.K + kBlock - 1) / kBlock; }
inline int64_t min_of(int64_t x, int64_t y) { return x < y ? x : y; }

// Rows of a chunk are cut into tiles of nearly equal size: sixteen rows are 8 + 8, not 12 + 4.
struct RowTiles {
  explicit RowTiles(int64_t num_rows)
      : count((num_rows + kTileRows - 1) / kTileRows), base(num_rows / count), larger(num_rows % count) {}
  int64_t rows(int64_t t) const { return base + (t < larger); }
  int64_t begin(int64_t t) const { return t * base + min_of(t, larger); }
  int64_t count;
  int64_t base;
  int64_t larger;  // this many tiles have one row more
};

// --- activations ---

// True if each value is 0, Inf, NaN or within [2^-48, 2^60]: then value * 2^60 does not overflow, and no
// product with a tiny weight (2^-129 ... 2^-111) loses a bit below the smallest subnormal.
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

// Packs a for broadcasting: [block][row tile][128][rows of the tile], zero beyond K.
void pack(const Fp8GemmParams& p, const Fp8GemmChunk& chunk, int64_t begin, int64_t end) {
  [[maybe_unused]] const ExactSubnormals guard;
  const RowTiles tiles(chunk.num_rows);
  const float scale = chunk.tiny ? kHalfUntiny : 1.f;
  alignas(64) float rows[kTileRows][kBlock];
  for (int64_t block = begin; block < end; ++block) {
    const int64_t k0 = block * kBlock, valid = min_of(kBlock, p.K - k0);
    for (int64_t t = 0; t < tiles.count; ++t) {
      const int64_t num_rows = tiles.rows(t), m0 = chunk.m0 + tiles.begin(t);
      for (int64_t m = 0; m < num_rows; ++m) {
        load_floats(p.a, p.a_dtype, (m0 + m) * p.lda + k0, valid, rows[m]);
        for (int64_t k = valid; k < kBlock; ++k) rows[m][k] = 0.f;
      }
      float* out = chunk.a + (block * chunk.num_rows + tiles.begin(t)) * kBlock;
      for (int k = 0; k < kBlock; ++k)
        for (int64_t m = 0; m < num_rows; ++m) *out++ = rows[m][k] * scale;
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

// --- weights ---

// Rows [n0, n0 + kCols) and columns [k0, k0 + 128) of b where they all exist, else a copy with zeros around
// it.
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

// Prefetches the next task's rows while this one computes, a line at a time and in the order of their
// addresses: DRAM sees one steady stream although the kernel reads kCols rows side by side, and the kernel
// finds them in L2. A prefetch cannot fault, so the end of b needs no check. Between the rows of a strided b
// it fetches the gaps too.
class Prefetcher {
 public:
  explicit Prefetcher(const uint8_t* codes) : line_(codes) {}
  MOELA_INLINE void step(int num_lines) {
    for (int i = 0; i < num_lines; ++i, line_ += 64) prefetch(line_);
  }

 private:
  const uint8_t* line_;
};

// Lane n of q[v][j]: the codes k = 4j .. 4j + 3 of column v * kLanes + n.
struct CodePanel {
  void fill(const CodeTile& tile, I* seen, Prefetcher& next) {
    for (int v = 0; v < kVecs; ++v)
      for (int k = 0; k < kBlock; k += 4 * kLanes) {
        next.step(4 * kLanes * kLanes / 64);
        load_quads(tile.codes + v * kLanes * tile.ld + k, tile.ld, &q[v][k / 4]);
#pragma GCC unroll 16
        for (int j = 0; j < kLanes; ++j) seen[v] = note_nan(seen[v], q[v][k / 4 + j]);
      }
  }
  // Column k + i of the block, k a multiple of 4, as value * 2^-120.
  MOELA_INLINE F weight(int k, int i, int v) const { return decode_tiny(q[v][k / 4], i); }
  static MOELA_INLINE F rescale(F chain) { return mul(chain, set1(kHalfUntiny)); }
  alignas(64) I q[kVecs][kBlock / 4];
};

struct FloatPanel {
  void fill(const CodeTile& tile, I* seen, Prefetcher& next) {
    const F untiny = set1(kUntiny);
    for (int k = 0; k < kBlock; k += 4 * kLanes)
      for (int v = 0; v < kVecs; ++v) {
        I q[kLanes];
        next.step(4 * kLanes * kLanes / 64);
        load_quads(tile.codes + v * kLanes * tile.ld + k, tile.ld, q);
#pragma GCC unroll 16
        for (int j = 0; j < kLanes; ++j) {
          seen[v] = note_nan(seen[v], q[j]);
#pragma GCC unroll 4
          for (int i = 0; i < 4; ++i)
            store(value[k + 4 * j + i] + v * kLanes, mul(decode_tiny(q[j], i), untiny));
        }
      }
  }
  MOELA_INLINE F weight(int k, int i, int v) const { return load(value[k + i] + v * kLanes); }
  static MOELA_INLINE F rescale(F chain) { return chain; }
  alignas(64) float value[kBlock][kCols];
};

// --- result ---

MOELA_INLINE bool is_end_of_sum(int64_t block, int64_t blocks) {
  return block % kBlocksPerSum == kBlocksPerSum - 1 || block == blocks - 1;
}

MOELA_INLINE void add_totals(int64_t size, float* sums, float* totals) {
  for (int64_t i = 0; i < size; i += kLanes) {
    store(sums + i, add(load(sums + i), load(totals + i)));
    store(totals + i, zero());
  }
}

// Adds the bias, rounds and stores a task's [num_rows, kCols]. Columns whose row of b holds a NaN code are
// NaN.
void finish(const Fp8GemmParams& p, const Fp8GemmChunk& chunk, int64_t n0, const I* seen, float* sums) {
  const int64_t cols = min_of(kCols, p.N - n0);
  uint32_t nan[kVecs];
  for (int v = 0; v < kVecs; ++v) nan[v] = nan_lanes(seen[v]);
  for (int64_t m = 0; m < chunk.num_rows; ++m, sums += kCols) {
    for (int64_t n = 0; n < cols; ++n) {
      if (nan[n / kLanes] >> n % kLanes & 1) sums[n] = __builtin_nanf("");
      if (p.bias) sums[n] += p.bias[n0 + n];
    }
    store_floats(sums, cols, p.d_dtype, p.d, (chunk.m0 + m) * p.ldd + n0);
  }
}

// --- multiply ---

// totals[m] += sf[m] * (a @ panel) for kRows rows, over the columns k = kFirst, kFirst + 2 ... of a block;
// with kChains = 2 over those and the next ones, side by side: few rows need the more sums to hide the
// latency of the multiply-add. Without the pin gcc 12 loads a weight again in every multiply-add (31 against
// 90 GFLOP/s, AVX2).
template <class Panel, int kRows, int kFirst, int kChains>
__attribute__((noinline)) void multiply_chains(const float* a, const Panel& panel, const float* sf,
                                               float* totals) {
  F acc[kChains][kRows][kVecs];
#pragma GCC unroll 2
  for (int c = 0; c < kChains; ++c)
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) acc[c][m][v] = zero();
  for (int k = 0; k < kBlock; k += 4) {
#pragma GCC unroll 2
    for (int i = 0; i < 4; i += 2) {
#pragma GCC unroll 2
      for (int c = 0; c < kChains; ++c) {
        F w[kVecs];
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) {
          w[v] = panel.weight(k, i + kFirst + c, v);
          pin(w[v]);
        }
#pragma GCC unroll 16
        for (int m = 0; m < kRows; ++m) {
          const F x = set1(a[(k + i + kFirst + c) * kRows + m]);
#pragma GCC unroll 4
          for (int v = 0; v < kVecs; ++v) acc[c][m][v] = fma(x, w[v], acc[c][m][v]);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
    const F s = set1(sf[m]);
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      float* t = totals + m * kCols + v * kLanes;
      F total = load(t);
#pragma GCC unroll 2
      for (int c = 0; c < kChains; ++c) total = fma(Panel::rescale(acc[c][m][v]), s, total);
      store(t, total);
    }
  }
}

template <class Panel, int kRows>
void multiply_block(const float* a, const Panel& panel, const float* sf, float* totals) {
  if constexpr (2 * kRows <= kTileRows) {
    multiply_chains<Panel, kRows, 0, 2>(a, panel, sf, totals);
  } else {
    multiply_chains<Panel, kRows, 0, 1>(a, panel, sf, totals);
    multiply_chains<Panel, kRows, 1, 1>(a, panel, sf, totals);
  }
}

template <class Panel>
using MultiplyFn = void (*)(const float*, const Panel&, const float*, float*);

template <class Panel, int kRows = kTileRows>
MultiplyFn<Panel> multiply_for(int64_t num_rows) {
  if constexpr (kRows == 1) {
    return multiply_block<Panel, 1>;
  } else {
    return num_rows >= kRows ? multiply_block<Panel, kRows> : multiply_for<Panel, kRows - 1>(num_rows);
  }
}

template <class Panel>
void run_task(const Fp8GemmParams& p, const Fp8GemmChunk& chunk, int64_t n0) {
  static thread_local Panel panel;
  alignas(64) static thread_local float totals[kMaxRows * kCols];
  alignas(64) static thread_local float sums[kMaxRows * kCols];
  alignas(64) uint8_t staging[kCols * kBlock];
  float sf[kMaxRows];
  const int64_t size = chunk.num_rows * kCols;
  std::memset(totals, 0, size * sizeof(float));
  std::memset(sums, 0, size * sizeof(float));
  I seen[kVecs];
  for (I& s : seen) s = zero_bytes();

  const RowTiles tiles(chunk.num_rows);
  const MultiplyFn<Panel> larger = multiply_for<Panel>(tiles.base + 1),
                          smaller = multiply_for<Panel>(tiles.base);
  Prefetcher next(p.b + (n0 + kCols) * p.ldb);
  const int64_t blocks = num_blocks(p);
  for (int64_t block = 0; block < blocks; ++block) {
    panel.fill(CodeTile(p, n0, block * kBlock, staging), seen, next);
    block_scales(p, chunk, n0, block, sf);
    for (int64_t t = 0; t < tiles.count; ++t) {
      const int64_t m = tiles.begin(t);
      const float* a = chunk.a + (block * chunk.num_rows + m) * kBlock;
      (t < tiles.larger ? larger : smaller)(a, panel, sf + m, totals + m * kCols);
    }
    if (is_end_of_sum(block, blocks)) add_totals(size, sums, totals);
  }
  finish(p, chunk, n0, seen, sums);
}

// chains[c][m] = a @ tile over the columns k = c (mod 2) of one block, for one or two rows: without a panel,
// the codes go from the transpose straight into the multiply-adds. The columns' vectors are innermost:
// together with the two chains that makes four independent sums. A function of its own, so that nothing else
// wants registers.
template <int kRows>
__attribute__((noinline)) void multiply_few_rows(const float* a, const CodeTile& tile, Prefetcher& next,
                                                 I* seen, float* chains) {
  F acc[2][kRows][kVecs];
  I nan[kVecs];
#pragma GCC unroll 4
  for (int v = 0; v < kVecs; ++v) {
    nan[v] = seen[v];
#pragma GCC unroll 2
    for (int m = 0; m < kRows; ++m) acc[0][m][v] = acc[1][m][v] = zero();
  }
  const uint8_t* codes = tile.codes;
  const int64_t ld = tile.ld;
  for (int k = 0; k < kBlock; k += 4 * kLanes) {
    I q[kVecs][kLanes];
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) load_quads(codes + v * kLanes * ld + k, ld, q[v]);
    next.step(4 * kLanes * kCols / 64);
#pragma GCC unroll 16
    for (int j = 0; j < kLanes; ++j) {
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) nan[v] = note_nan(nan[v], q[v][j]);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i)
#pragma GCC unroll 2
        for (int m = 0; m < kRows; ++m) {
          const F x = set1(a[(k + 4 * j + i) * kRows + m]);
#pragma GCC unroll 4
          for (int v = 0; v < kVecs; ++v)
            acc[i % 2][m][v] = fma(x, decode_tiny(q[v][j], i), acc[i % 2][m][v]);
        }
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVecs; ++v) {
    seen[v] = nan[v];
#pragma GCC unroll 2
    for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 2
      for (int c = 0; c < 2; ++c) store(chains + (c * kRows + m) * kCols + v * kLanes, acc[c][m][v]);
  }
}

template <int kRows>
void run_few_rows(const Fp8GemmParams& p, const Fp8GemmChunk& chunk, int64_t n0) {
  alignas(64) uint8_t staging[kCols * kBlock];
  alignas(64) float chains[2 * kRows * kCols];
  alignas(64) float totals[kRows * kCols] = {}, sums[kRows * kCols] = {};
  I seen[kVecs];
  for (I& s : seen) s = zero_bytes();
  Prefetcher next(p.b + (n0 + kCols) * p.ldb);
  const int64_t blocks = num_blocks(p);
  for (int64_t block = 0; block < blocks; ++block) {
    const CodeTile tile(p, n0, block * kBlock, staging);
    multiply_few_rows<kRows>(chunk.a + block * kRows * kBlock, tile, next, seen, chains);
    float sf[kRows];
    block_scales(p, chunk, n0, block, sf);
    for (int c = 0; c < 2; ++c)
      for (int m = 0; m < kRows; ++m)
        for (int n = m * kCols; n < (m + 1) * kCols; n += kLanes)
          store(totals + n,
                fma(CodePanel::rescale(load(chains + c * kRows * kCols + n)), set1(sf[m]), load(totals + n)));
    if (is_end_of_sum(block, blocks)) add_totals(kRows * kCols, sums, totals);
  }
  finish(p, chunk, n0, seen, sums);
}

using TaskFn = void (*)(const Fp8GemmParams&, const Fp8GemmChunk&, int64_t n0);

void run(const Fp8GemmParams& p, const Fp8GemmChunk& chunk, int64_t begin, int64_t end) {
  [[maybe_unused]] const ExactSubnormals guard;
  TaskFn task = chunk.tiny ? run_task<CodePanel> : run_task<FloatPanel>;
  if (chunk.tiny && chunk.num_rows <= 2) task = chunk.num_rows == 1 ? run_few_rows<1> : run_few_rows<2>;
  for (int64_t n = begin; n < end; ++n) task(p, chunk, n * kCols);
}

constexpr Fp8GemmKernels kFp8GemmKernels = {
    .shape = {.tile_rows = kTileRows, .cols = kCols, .code_panel_rows = kCodePanelRows},
    .fits_tiny = fits_tiny,
    .pack = pack,
    .run = run,
};

}  // namespace
