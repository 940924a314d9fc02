// fp8_gemm on the CPU, in the operations of simd.h. Included by every isa_<name>.cpp.
//
// Computes d = (a * sf_a) @ (b * sf_b).T + bias from b as a checkpoint stores it: rows of e4m3 codes.
// Bound: the DRAM rate of b for few rows of a, the multiply-add rate from about eight rows on.
//
// One task is kCols columns of d for all rows of the chunk. Few rows take dot products along K
// (fp8_gemm_dot.h), more rows a panel of transposed weights (fp8_gemm_panel.h).
//
// Numerics, the same on both ways and on every instruction set, for one element of d:
//   w = code * sf_b and, for e4m3 activations, a * sf_a are rounded to float32.
//   Per slab of 1024 columns of K sixteen chains of fused multiply-adds: column k belongs to chain
//   k % 64 / 4 and k ascends. They are added as a tree: chain c + 8 to chain c, then c + 4, c + 2, c + 1.
//   The sums of the slabs are added in ascending order, then the bias.
// Dot products find their chains side by side in a vector, panels compute one after the other. Chains of at
// most 64 keep the rounding error below 2e-7 of the result (docs/FACTS.md).
#pragma once

#include "cpu/convert.h"
#include "cpu/fp8_gemm.h"
#include "cpu/simd.h"

namespace {

using moela::cpu::Fp8GemmChunk;
using moela::cpu::Fp8GemmKernels;
using moela::cpu::Fp8GemmParams;
using moela::plan::Fp8GemmPath;

constexpr int kBlock = 128;  // columns of K, and rows of b, that share a scale factor
constexpr int kSlab = moela::cpu::kFp8GemmSlab;
constexpr int kChains = 16;
constexpr int kGroup = 64;  // columns of K after which the chains repeat: four of each chain
constexpr int kGroupsPerSlab = kSlab / kGroup;

// Register tile of the panel: kTileRows * kVecs accumulators, kVecs vectors of b and one broadcast fill the
// register file. Up to kDotRows rows of a dot products are the faster way (docs/FACTS.md).
#if defined(MOELA_SIMD_AVX512)
constexpr int kTileRows = 12, kVecs = 2, kDotRows = 16;
#elif defined(MOELA_SIMD_AVX2)
constexpr int kTileRows = 6, kVecs = 2, kDotRows = 6;
#elif defined(MOELA_SIMD_NEON)
constexpr int kTileRows = 6, kVecs = 4, kDotRows = 4;
#else
constexpr int kTileRows = 2, kVecs = 4, kDotRows = 2;
#endif
constexpr int kCols = kVecs * kLanes;
static_assert(kBlock % kCols == 0, "a task must not straddle two scale factors of b");
constexpr int kMaxRows = 252;  // of a chunk; plan/fp8_gemm.h

// decode_tiny gives value * 2^-120.
constexpr float kUntiny = 0x1p120f;

constexpr int64_t min_of(int64_t x, int64_t y) { return x < y ? x : y; }
constexpr int64_t ceil_div(int64_t x, int64_t y) { return (x + y - 1) / y; }

// Rows of a chunk are cut into tiles of nearly equal size: sixteen rows are 8 + 8, not 12 + 4.
struct RowTiles {
  RowTiles(int64_t num_rows, int64_t tile_rows)
      : count(ceil_div(num_rows, tile_rows)), base(num_rows / count), larger(num_rows % count) {}
  int64_t rows(int64_t t) const { return base + (t < larger); }
  int64_t begin(int64_t t) const { return t * base + min_of(t, larger); }
  int64_t count;
  int64_t base;
  int64_t larger;  // this many tiles have one row more
};

// A slab of K.
struct Slab {
  Slab(const Fp8GemmParams& p, int64_t index)
      : k0(index * kSlab), cols(min_of(kSlab, p.K - k0)), groups(ceil_div(cols, kGroup)) {}
  int64_t k0;
  int64_t cols;    // columns of K that exist
  int64_t groups;  // groups of 64; what is beyond K counts as zero
};

inline int64_t num_slabs(const Fp8GemmParams& p) { return ceil_div(p.K, kSlab); }

// The scale factors of the rows of b from n0 on, one per 128 columns of K from k0 on.
MOELA_INLINE const float* block_sf(const Fp8GemmParams& p, int64_t n0, int64_t k0) {
  return p.sf_b + n0 / kBlock * ceil_div(p.K, kBlock) + k0 / kBlock;
}

// Rows [n0, n0 + num_rows) of b and the columns of a slab where they all exist, else a copy in `staging` with
// zeros around it.
struct CodeTile {
  CodeTile(const Fp8GemmParams& p, int64_t n0, int num_rows, const Slab& slab, uint8_t* staging) {
    const int64_t rows = min_of(num_rows, p.N - n0);
    codes = p.b + n0 * p.ldb + slab.k0;
    ld = p.ldb;
    if (rows == num_rows && slab.cols % kGroup == 0) return;
    std::memset(staging, 0, num_rows * kSlab);
    for (int64_t n = 0; n < rows; ++n) std::memcpy(staging + n * kSlab, codes + n * ld, slab.cols);
    codes = staging;
    ld = kSlab;
  }
  const uint8_t* codes;
  int64_t ld;
};

// Row m of a slab as float32, times its scale factors, zero beyond K.
inline void load_row(const Fp8GemmParams& p, const Slab& slab, int64_t m, float* out) {
  load_floats(p.a, p.a_dtype, m * p.lda + slab.k0, slab.cols, out);
  for (int64_t k = slab.cols; k < slab.groups * kGroup; ++k) out[k] = 0.f;
  if (p.sf_a == nullptr) return;
  const float* sf = p.sf_a + m * p.sf_a_stride_m + slab.k0 / kBlock * p.sf_a_stride_k;
  for (int64_t k = 0; k < slab.cols; k += kBlock, sf += p.sf_a_stride_k)
    for (int64_t i = k; i < min_of(k + kBlock, slab.cols); ++i) out[i] *= *sf;
}

// Adds the bias, rounds and stores a task's [num_rows, kCols]. Columns whose row of b holds a NaN code, bits
// of `nan`, are NaN.
void finish(const Fp8GemmParams& p, const Fp8GemmChunk& chunk, int64_t n0, uint64_t nan, float* sums) {
  const int64_t cols = min_of(kCols, p.N - n0);
  for (int64_t m = 0; m < chunk.num_rows; ++m, sums += kCols) {
    for (int64_t n = 0; n < cols; ++n) {
      if (nan >> n & 1) sums[n] = __builtin_nanf("");
      if (p.bias) sums[n] += p.bias[n0 + n];
    }
    store_floats(sums, cols, p.d_dtype, p.d, (chunk.m0 + m) * p.ldd + n0);
  }
}

}  // namespace

#include "cpu/fp8_gemm_dot.h"
#include "cpu/fp8_gemm_panel.h"

namespace {

void pack(const Fp8GemmParams& p, const Fp8GemmChunk& chunk, int64_t begin, int64_t end) {
  [[maybe_unused]] const ExactSubnormals guard;
  for (int64_t s = begin; s < end; ++s) {
    const Slab slab(p, s);
    float* out = chunk.a + slab.k0 * chunk.num_rows;
    switch (chunk.path) {
      case Fp8GemmPath::kDot: pack_for_dot(p, chunk, slab, out); break;
      case Fp8GemmPath::kPanel: pack_for_panel(p, chunk, slab, out); break;
    }
  }
}

void run(const Fp8GemmParams& p, const Fp8GemmChunk& chunk, int64_t begin, int64_t end) {
  [[maybe_unused]] const ExactSubnormals guard;
  for (int64_t n0 = begin * kCols; n0 < end * kCols; n0 += kCols) {
    switch (chunk.path) {
      case Fp8GemmPath::kDot: run_dot(p, chunk, n0); break;
      case Fp8GemmPath::kPanel: run_panel(p, chunk, n0); break;
    }
  }
}

constexpr Fp8GemmKernels kFp8GemmKernels = {
    .shape = {.cols = kCols, .dot_rows = kDotRows},
    .pack = pack,
    .run = run,
};

}  // namespace
