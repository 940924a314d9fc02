// Matrix products for few rows of a: dot products along K. Part of gemm_kernel.h, which has the numerics.
//
// Bound: the DRAM rate of b. A row of b is read front to back, kLanes words at a time; its sixteen chains are
// the lanes of 16 / kLanes vectors. Nothing is transposed: a is permuted once instead, so that the elements
// at position i of a word meet their activations.
#pragma once

#include "cpu/gemm_kernel.h"

namespace {

// [group][row][i][chain]: column k of row m stands at group k / kGroup, i = k % kPerWord, chain
// k % kGroup / kPerWord.
template <class Codec>
void pack_for_dot(const GemmChunk& chunk, const Slab<Codec>& slab, float* out) {
  constexpr int kWord = Codec::kPerWord;
  float row[kSlab];
  for (int64_t m = 0; m < chunk.num_rows; ++m) {
    load_row(*chunk.problem, slab, chunk.m0 + m, row);
    for (int64_t g = 0; g < slab.groups; ++g) {
      float* to = out + (g * chunk.num_rows + m) * kGroup<Codec>;
      for (int i = 0; i < kWord; ++i)
        for (int c = 0; c < kChains; ++c) to[i * kChains + c] = row[g * kGroup<Codec> + kWord * c + i];
    }
  }
}

// Prefetches the rows of b that come next into L2, a line at a time and in the order of their addresses: DRAM
// sees one steady stream although the kernel reads several rows side by side. As far ahead into L1 it would
// be slower: 10 against 19 GB/s (Zen 4). A prefetch cannot fault, so the end of b needs no check. Between the
// rows of a strided b it fetches the gaps too. From `end` on, the end of a task's columns, it goes on at
// `next`.
class Prefetcher {
 public:
  Prefetcher(const uint8_t* line, const uint8_t* end, const uint8_t* next)
      : line_(line < end ? line : next + (line - end)),
        left_(line < end ? end - line : INT64_MAX),
        next_(next) {}
  MOELA_INLINE void step(int num_lines) {
    for (int i = 0; i < num_lines; ++i, line_ += kLine) prefetch_l2(line_);
    left_ -= num_lines * kLine;
    if (left_ <= 0) {
      line_ = next_;
      left_ = INT64_MAX;
    }
  }

 private:
  const uint8_t* line_;
  int64_t left_;
  const uint8_t* next_;
};

// Slabs that are computed in one go; their chains are added afterwards, when nothing waits for the sum.
constexpr int kSlabsAtOnce = 8;

// What is the same for all dot products of some slabs.
struct DotSlabs {
  const float* a;   // first row of a that is wanted, in the order of pack_for_dot
  int64_t a_group;  // floats from one group to the next
  const float* sf;  // one per 128 columns
  int64_t groups;   // of each slab
  int64_t count;    // of slabs, at most kSlabsAtOnce
};

// chains[(slab * kN + n) * kM + m] = the sixteen chains of rows n of b and m of a.
template <class Codec, int kN, int kM>
__attribute__((noinline)) void dot_rows(const DotSlabs& slabs, const uint8_t* codes, int64_t ld,
                                        Prefetcher& next, I* seen, float* chains) {
  constexpr int kPerWord = Codec::kPerWord, kGroups = kSlab / kGroup<Codec>;
  I nan[kN];  // in registers: through `seen` each note would wait for the store of the last one
#pragma GCC unroll 8
  for (int n = 0; n < kN; ++n) nan[n] = seen[n];
  Prefetcher ahead = next;
  const float* sf = slabs.sf;
  for (int64_t s = 0; s < slabs.count; ++s) {
    for (int chain = 0; chain < kChains; chain += kLanes) {
      F acc[kN][kM];
#pragma GCC unroll 8
      for (int n = 0; n < kN; ++n)
#pragma GCC unroll 8
        for (int m = 0; m < kM; ++m) acc[n][m] = zero();
      const float* a = slabs.a + s * kGroups * slabs.a_group + chain;
      for (int64_t g = 0; g < slabs.groups; ++g, a += slabs.a_group) {
        [[maybe_unused]] F f;
        if constexpr (Codec::kHasSf) f = set1(sf[g / (kBlock / kGroup<Codec>)] * kUntiny);
        if (chain == 0) ahead.step(kN);
        I q[kN];
#pragma GCC unroll 8
        for (int n = 0; n < kN; ++n) {
          const uint8_t* p = codes + n * ld + g * kLine + 4 * chain;
          prefetch_l1(p + 512);  // from L2, where `ahead` put it
          q[n] = load_words(p);
          if constexpr (Codec::kHasSf) nan[n] = note_nan(nan[n], q[n]);
        }
#pragma GCC unroll 4
        for (int i = 0; i < kPerWord; ++i) {
          F w[kN];
#pragma GCC unroll 8
          for (int n = 0; n < kN; ++n) {
            w[n] = Codec::decode(q[n], i);
            if constexpr (Codec::kHasSf) w[n] = mul(w[n], f);
            pin(w[n]);
          }
#pragma GCC unroll 8
          for (int m = 0; m < kM; ++m) {
            F x = load(a + m * kGroup<Codec> + i * kChains);
            pin(x);
#pragma GCC unroll 8
            for (int n = 0; n < kN; ++n) acc[n][m] = fma(x, w[n], acc[n][m]);
          }
        }
      }
#pragma GCC unroll 8
      for (int n = 0; n < kN; ++n)
#pragma GCC unroll 8
        for (int m = 0; m < kM; ++m) store(chains + (n * kM + m) * kChains + chain, acc[n][m]);
    }
    chains += kN * kM * kChains;
    codes += kGroups * kLine;
    sf += kSlab / kBlock;
  }
#pragma GCC unroll 8
  for (int n = 0; n < kN; ++n) seen[n] = nan[n];
  next = ahead;
}

// sums[m][n] of kN rows of b and kM of a, added to what is there.
template <class Codec, int kN, int kM>
void dot_tile(const DotSlabs& slabs, const uint8_t* codes, int64_t ld, Prefetcher& next, I* seen,
              float* sums) {
  constexpr int kCount = kN * kM;
  alignas(64) float chains[(kSlabsAtOnce * kCount + 3) / 4 * 4 * kChains];
  alignas(64) float totals[(kSlabsAtOnce * kCount + 3) / 4 * 4];
  dot_rows<Codec, kN, kM>(slabs, codes, ld, next, seen, chains);
  const int64_t count = slabs.count * kCount;
  for (int64_t i = count; i % 4 != 0; ++i) std::memset(chains + i * kChains, 0, kChains * sizeof(float));
  for (int64_t i = 0; i < count; i += 4) add_chains(chains + i * kChains, totals + i);
  for (int64_t s = 0; s < slabs.count; ++s)
    for (int n = 0; n < kN; ++n)
      for (int m = 0; m < kM; ++m) sums[m * kCols + n] += totals[(s * kN + n) * kM + m];
}

using DotFn = void (*)(const DotSlabs&, const uint8_t*, int64_t, Prefetcher&, I*, float*);

template <class Codec, int kN, int kM>
DotFn dot_for(int64_t num_rows) {
  if constexpr (kM == 1) {
    return dot_tile<Codec, kN, 1>;
  } else {
    return num_rows >= kM ? dot_tile<Codec, kN, kM> : dot_for<Codec, kN, kM - 1>(num_rows);
  }
}

// A tile of rows of b and of a: as many of each as the registers hold chains for. Rows of b share the loads
// of a, rows of a the decoding of b.
#if defined(MOELA_SIMD_AVX512)
constexpr int kFewRows = 4, kDotTileRows = 8;
#else
constexpr int kFewRows = 1, kDotTileRows = 4;
#endif
constexpr int rows_of_b(int64_t M) { return M <= kFewRows ? 4 : 2; }
static_assert(kCols % 4 == 0, "a tile must not leave its task's columns");

template <class Codec>
DotFn dot_of(int rows_of_b, int64_t rows_of_a) {
  return rows_of_b == 4 ? dot_for<Codec, 4, kFewRows>(rows_of_a) : dot_for<Codec, 2, kDotTileRows>(rows_of_a);
}

// Bytes of b beyond the rows that come next: how far ahead of its use a line is on its way from DRAM.
constexpr int64_t kAhead = 16384;

template <class Codec>
void dot_sums(const GemmChunk& chunk, const Columns& columns, float* sums) {
  alignas(64) uint8_t staging[4 * kSlab * sizeof(typename Codec::Element)];
  const GemmProblem& p = *chunk.problem;
  const int64_t M = chunk.num_rows;
  const RowTiles tiles(M, kDotTileRows);
  const int step = rows_of_b(M);
  const DotFn larger = dot_of<Codec>(step, tiles.base + 1), smaller = dot_of<Codec>(step, tiles.base);
  const auto* after = static_cast<const uint8_t*>(columns.next);
  const uint8_t* end = row_of_b(p, columns.n0 + columns.count);
  std::memset(sums, 0, M * kCols * sizeof(float));
  uint64_t nan = 0;
  for (int64_t n = 0, rows; n < columns.count; n += rows) {
    const int64_t n0 = columns.n0 + n;
    rows = min_of(step, columns.count - n);
    if (Codec::kHasSf) rows = min_of(rows, kBlock - n0 % kBlock);  // the rows share their scale factors
    I seen[4];
    for (I& s : seen) s = zero_bytes();
    Prefetcher next(row_of_b(p, n0 + rows) + kAhead, end, after);
    const auto add_slabs = [&](int64_t first, int64_t count, const uint8_t* codes, int64_t ld,
                               int64_t groups) {
      const Prefetcher here = next;
      for (int64_t t = 0; t < tiles.count; ++t) {
        const int64_t m = tiles.begin(t);
        const DotSlabs slabs = {.a = chunk.a + first * kSlab * M + m * kGroup<Codec>,
                                .a_group = M * kGroup<Codec>,
                                .sf = Codec::kHasSf ? sf_of_row(p, n0, first * kSlab) : nullptr,
                                .groups = groups,
                                .count = count};
        next = here;
        (t < tiles.larger ? larger : smaller)(slabs, codes, ld, next, seen, sums + m * kCols + n);
      }
    };
    // Full slabs straight from b, if all rows exist; what is left through CodeTile.
    const int64_t direct = rows == step ? p.K / kSlab : 0;
    for (int64_t s = 0; s < direct; s += kSlabsAtOnce) {
      const CodeTile<Codec> tile(p, n0, step, step, Slab<Codec>(p, s), staging);
      add_slabs(s, min_of(kSlabsAtOnce, direct - s), tile.codes, tile.ld, kSlab / kGroup<Codec>);
    }
    for (int64_t s = direct; s < num_slabs(p); ++s) {
      const Slab<Codec> slab(p, s);
      const CodeTile<Codec> tile(p, n0, rows, step, slab, staging);
      add_slabs(s, 1, tile.codes, tile.ld, slab.groups);
    }
    for (int r = 0; r < step; ++r) nan |= uint64_t{nan_lanes(seen[r]) != 0} << (n + r);
  }
  spread_nan(nan, M, sums);
}

}  // namespace
