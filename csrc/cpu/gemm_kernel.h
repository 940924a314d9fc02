// Matrix products on the CPU, in the operations of simd.h. Included by every isa_<name>.cpp.
//
// Computes d = (a * sf_a) @ (b * sf_b).T + bias from b as a checkpoint stores it.
// Bound: the DRAM rate of b for few rows of a, the multiply-add rate from about eight rows on.
//
// One task is kCols columns of d for all rows of the chunk. Few rows take dot products along K (gemm_dot.h),
// more rows a panel of transposed weights (gemm_panel.h); a b stored [K, N] needs no transposing
// (gemm_rows.h). How elements of b become weights is a codec (gemm_codec.h).
//
// Numerics, the same on both ways and on every instruction set, for one element of d:
//   w = code * sf_b and, for e4m3 activations, a * sf_a are rounded to float32.
//   Per slab of 1024 columns of K sixteen chains of fused multiply-adds: column k belongs to chain
//   k % (16 p) / p, where p elements of b fill 32 bits, and k ascends. They are added as a tree: chain c + 8
//   to chain c, then c + 4, c + 2, c + 1. The sums of the slabs are added in ascending order, then the bias.
// Dot products find their chains side by side in a vector, panels compute one after the other. Chains of at
// most 64 keep the rounding error below 2e-7 of the result (docs/FACTS.md).
#pragma once

#include "cpu/gemm.h"
#include "cpu/gemm_codec.h"
#include "cpu/scale_factor.h"

namespace {

using moela::cpu::ActivationCast;
using moela::cpu::GemmChunk;
using moela::cpu::GemmKernels;
using moela::cpu::GemmProblem;
using moela::plan::GemmPath;

constexpr int kBlock = 128;  // columns of K, and rows of b, that share a scale factor
constexpr int kSlab = moela::cpu::kGemmSlab;
constexpr int kChains = 16;
constexpr int kLine = 64;     // bytes: sixteen words of b, one of each chain
constexpr int kPadding = 64;  // columns of K are padded with zeros to a multiple of this

// Columns of K after which the chains repeat: those of a line of b.
template <class Codec>
constexpr int kGroup = kChains * Codec::kPerWord;

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
constexpr int kMaxRows = moela::plan::kMaxChunkRows;

// Tasks that are computed together: as many as gemm_amx.h wants, whose rows of a are read once for all of
// them.
#if defined(MOELA_SIMD_AMX)
constexpr int kTasksAtOnce = 16;
#else
constexpr int kTasksAtOnce = 1;
#endif

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
template <class Codec>
struct Slab {
  Slab(const GemmProblem& p, int64_t index)
      : k0(index * kSlab),
        cols(min_of(kSlab, p.K - k0)),
        groups(ceil_div(cols, kPadding) * (kPadding / kGroup<Codec>)) {}
  int64_t k0;
  int64_t cols;    // columns of K that exist
  int64_t groups;  // of kGroup columns; what is beyond K counts as zero
};

inline int64_t num_slabs(const GemmProblem& p) { return ceil_div(p.K, kSlab); }

// The columns of d that one task computes, or several: rows [n0, n0 + count) of b. `next`: the row of b that
// is read after them, as far as one knows; it is prefetched.
struct Columns {
  int64_t n0;
  int64_t count;
  const void* next;
};

inline const uint8_t* row_of_b(const GemmProblem& p, int64_t n) {
  return static_cast<const uint8_t*>(p.b) + n * p.stride_bn * size_of(p.b_dtype);
}

// `tasks` tasks of a product with N columns, from `task` on.
inline Columns columns_of(const GemmProblem& p, int64_t task, int64_t tasks = 1) {
  const int64_t n0 = task * kCols, count = min_of(tasks * kCols, p.N - n0);
  return {.n0 = n0, .count = count, .next = row_of_b(p, n0 + count)};
}

// Calls f(columns of a task, its sums) for every task of `columns`; sums are [task][num_rows][kCols].
template <class F>
MOELA_INLINE void for_tasks(const GemmProblem& p, const Columns& columns, int64_t num_rows, float* sums,
                            const F& f) {
  for (int64_t n = 0; n < columns.count; n += kCols, sums += num_rows * kCols) {
    const int64_t end = min_of(n + kCols, columns.count);
    const void* next = end < columns.count ? row_of_b(p, columns.n0 + end) : columns.next;
    f(Columns{.n0 = columns.n0 + n, .count = end - n, .next = next}, sums);
  }
}

// The scale factors of row n of b, one per 128 columns of K from k0 on.
MOELA_INLINE const float* sf_of_row(const GemmProblem& p, int64_t n, int64_t k0) {
  return p.sf_b + n / kBlock * ceil_div(p.K, kBlock) + k0 / kBlock;
}

// Rows [n0, n0 + num_rows) of b and the columns of a slab: b itself if `rows` is all of them and the slab
// needs no padding, else a copy of `rows` rows in `staging` with zeros around it.
template <class Codec>
struct CodeTile {
  static constexpr int64_t kElement = sizeof(typename Codec::Element);
  CodeTile(const GemmProblem& p, int64_t n0, int64_t rows, int64_t num_rows, const Slab<Codec>& slab,
           uint8_t* staging) {
    codes = row_of_b(p, n0) + slab.k0 * kElement;
    ld = p.stride_bn * kElement;
    if (rows == num_rows && slab.cols % kPadding == 0) return;
    std::memset(staging, 0, num_rows * kSlab * kElement);
    for (int64_t n = 0; n < rows; ++n)
      std::memcpy(staging + n * kSlab * kElement, codes + n * ld, slab.cols * kElement);
    codes = staging;
    ld = kSlab * kElement;
  }
  const uint8_t* codes;
  int64_t ld;  // bytes
};

// Rounds a row to e4m3, with a scale factor per kBlock columns.
inline void round_row(ActivationCast cast, int64_t cols, float* row) {
  uint8_t codes[kBlock];
  for (int64_t k = 0; k < cols; k += kBlock) {
    const int64_t n = min_of(kBlock, cols - k);
    const float sf = scale_factor(amax_bits(row + k, n, 0), cast == ActivationCast::kFp8Ue8m0);
    quantize(row + k, n, sf, codes);
    for (int64_t i = 0; i < n; ++i) row[k + i] = from_e4m3(codes[i]) * sf;
  }
}

// Row m of a slab as float32, times its scale factors, zero beyond K.
template <class Codec>
void load_row(const GemmProblem& p, const Slab<Codec>& slab, int64_t m, float* out) {
  const int64_t row = p.a_rows ? p.a_rows[m] : m;
  load_floats(p.a, p.a_dtype, row * p.lda + slab.k0, slab.cols, out);
  for (int64_t k = slab.cols; k < slab.groups * kGroup<Codec>; ++k) out[k] = 0.f;
  if (p.a_cast != ActivationCast::kNone) round_row(p.a_cast, slab.cols, out);
  if (p.sf_a == nullptr) return;
  const float* sf = p.sf_a + row * p.sf_a_stride_m + slab.k0 / kBlock * p.sf_a_stride_k;
  for (int64_t k = 0; k < slab.cols; k += kBlock, sf += p.sf_a_stride_k)
    for (int64_t i = k; i < min_of(k + kBlock, slab.cols); ++i) out[i] *= *sf;
}

// Room for the sums of tasks. Up to three rows of b that are not there may add zeros past the last sum.
constexpr int kSumsSize = kTasksAtOnce * kMaxRows * kCols + 4;

// Columns whose row of b holds a NaN code, bits of `nan`, are NaN.
inline void spread_nan(uint64_t nan, int64_t num_rows, float* sums) {
  if (nan == 0) return;
  for (int64_t m = 0; m < num_rows; ++m)
    for (int n = 0; n < kCols; ++n)
      if (nan >> n & 1) sums[m * kCols + n] = __builtin_nanf("");
}

inline void add_bias(const GemmProblem& p, const Columns& columns, int64_t num_rows, float* sums) {
  if (p.bias == nullptr) return;
  for_tasks(p, columns, num_rows, sums, [&](const Columns& task, float* of_task) {
    for (int64_t m = 0; m < num_rows; ++m)
      for (int64_t n = 0; n < task.count; ++n) of_task[m * kCols + n] += p.bias[task.n0 + n];
  });
}

inline void store_sums(const GemmChunk& chunk, const Columns& columns, float* sums) {
  const GemmProblem& p = *chunk.problem;
  for_tasks(p, columns, chunk.num_rows, sums, [&](const Columns& task, const float* of_task) {
    for (int64_t m = 0; m < chunk.num_rows; ++m)
      store_floats(of_task + m * kCols, task.count, p.d_dtype, p.d, (chunk.m0 + m) * p.ldd + task.n0);
  });
}

}  // namespace

#include "cpu/gemm_dot.h"
#include "cpu/gemm_panel.h"
#if defined(MOELA_SIMD_AMX)
#include "cpu/gemm_amx.h"
#elif defined(MOELA_SIMD_BF16)
#include "cpu/gemm_bf16.h"
#endif
#include "cpu/gemm_rows.h"

namespace {

#if defined(MOELA_SIMD_BF16)
constexpr bool kHasBf16 = true;
#else
constexpr bool kHasBf16 = false;
inline void pack_for_bf16(const GemmChunk&, int64_t) { __builtin_unreachable(); }
inline void bf16_sums(const GemmChunk&, const Columns&, float*) { __builtin_unreachable(); }
#endif

// sums[task][num_rows][kCols] of the chunk's rows and the columns of at most kTasksAtOnce tasks, with the
// bias.
void sum_columns(const GemmChunk& chunk, const Columns& columns, float* sums) {
  const GemmProblem& p = *chunk.problem;
  if (chunk.path == GemmPath::kBf16) {
    bf16_sums(chunk, columns, sums);
  } else {
    for_tasks(p, columns, chunk.num_rows, sums, [&](const Columns& task, float* of_task) {
      with_codec(p.b_dtype, [&](auto codec) {
        using Codec = decltype(codec);
        const auto f = chunk.path == GemmPath::kDot ? dot_sums<Codec> : panel_sums<Codec>;
        f(chunk, task, of_task);
      });
    });
  }
  add_bias(p, columns, chunk.num_rows, sums);
}

void pack(const GemmChunk& chunk, int64_t begin, int64_t end) {
  [[maybe_unused]] const ExactSubnormals guard;
  with_codec(chunk.problem->b_dtype, [&](auto codec) {
    using Codec = decltype(codec);
    for (int64_t s = begin; s < end; ++s) {
      const Slab<Codec> slab(*chunk.problem, s);
      float* out = chunk.a + slab.k0 * chunk.num_rows;
      switch (chunk.path) {
        case GemmPath::kDot: pack_for_dot(chunk, slab, out); break;
        case GemmPath::kPanel: pack_for_panel(chunk, slab, out); break;
        case GemmPath::kBf16: pack_for_bf16(chunk, s); break;
      }
    }
  });
}

// As run, of a b that is stored [K, N].
template <class Codec>
void run_rows(const GemmChunk& chunk, int64_t begin, int64_t end) {
  constexpr int kTasks = RowPanel<Codec>::kTasks;
  alignas(64) static thread_local float sums[kTasks * kMaxRows * kCols];
  const GemmProblem& p = *chunk.problem;
  for (int64_t task = begin; task < end; task += kTasks) {
    const int64_t n0 = task * kCols, stop = min_of(min_of(task + kTasks, end) * kCols, p.N);
    const Columns columns = {.n0 = n0, .count = stop - n0, .next = nullptr};
    rows_sums<Codec>(chunk, columns, sums);
    add_bias(p, columns, chunk.num_rows, sums);
    store_sums(chunk, columns, sums);
  }
}

void run(const GemmChunk& chunk, int64_t begin, int64_t end) {
  [[maybe_unused]] const ExactSubnormals guard;
  const GemmProblem& p = *chunk.problem;
  if (p.stride_bk != 1) {
    with_codec(p.b_dtype, [&](auto codec) {
      if constexpr (!decltype(codec)::kHasSf) run_rows<decltype(codec)>(chunk, begin, end);
    });
    return;
  }
  alignas(64) static thread_local float sums[kSumsSize];
  for (int64_t task = begin; task < end; task += kTasksAtOnce) {
    const Columns columns = columns_of(p, task, min_of(kTasksAtOnce, end - task));
    sum_columns(chunk, columns, sums);
    store_sums(chunk, columns, sums);
  }
}

constexpr GemmKernels kGemmKernels = {
    .shape = {.cols = kCols, .dot_rows = kDotRows, .has_bf16 = kHasBf16},
    .pack = pack,
    .run = run,
};

}  // namespace
