// fp8_gemm for few rows of a: dot products along K. Part of fp8_gemm_kernel.h, which has the numerics.
//
// Bound: the DRAM rate of b. A row of b is read front to back, kLanes quads of codes at a time; its sixteen
// chains are the lanes of 16 / kLanes vectors. Nothing is transposed: a is permuted once instead, so that the
// codes of one quad position i meet their activations.
#pragma once

#include "cpu/fp8_gemm_kernel.h"

namespace {

// [group][row][i][chain]: element k of row m stands at group k / 64, i = k % 4, chain k % 64 / 4.
void pack_for_dot(const Fp8GemmParams& p, const Fp8GemmChunk& chunk, const Slab& slab, float* out) {
  float row[kSlab];
  for (int64_t m = 0; m < chunk.num_rows; ++m) {
    load_row(p, slab, chunk.m0 + m, row);
    for (int64_t g = 0; g < slab.groups; ++g) {
      float* to = out + (g * chunk.num_rows + m) * kGroup;
      for (int i = 0; i < 4; ++i)
        for (int c = 0; c < kChains; ++c) to[i * kChains + c] = row[g * kGroup + 4 * c + i];
    }
  }
}

// Prefetches the rows of b that come next into L2, a line at a time and in the order of their addresses: DRAM
// sees one steady stream although the kernel reads several rows side by side. As far ahead into L1 it would
// be slower: 10 against 19 GB/s (Zen 4). A prefetch cannot fault, so the end of b needs no check. Between the
// rows of a strided b it fetches the gaps too.
class Prefetcher {
 public:
  explicit Prefetcher(const uint8_t* codes) : line_(codes) {}
  MOELA_INLINE void step(int num_lines) {
    for (int i = 0; i < num_lines; ++i, line_ += 64) prefetch_l2(line_);
  }

 private:
  const uint8_t* line_;
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
template <int kN, int kM>
__attribute__((noinline)) void dot_rows(const DotSlabs& slabs, const uint8_t* codes, int64_t ld,
                                        Prefetcher& next, I* seen, float* chains) {
  I nan[kN];  // in registers: through `seen` each note would wait for the store of the last one
#pragma GCC unroll 8
  for (int n = 0; n < kN; ++n) nan[n] = seen[n];
  Prefetcher ahead = next;
  const float* sf = slabs.sf;
  for (int64_t s = 0; s < slabs.count; ++s) {
    constexpr int kAtOnce = 4 * kLanes;  // codes in a vector
    for (int half = 0; half < kGroup; half += kAtOnce) {
      F acc[kN][kM];
#pragma GCC unroll 8
      for (int n = 0; n < kN; ++n)
#pragma GCC unroll 8
        for (int m = 0; m < kM; ++m) acc[n][m] = zero();
      const float* a = slabs.a + s * kGroupsPerSlab * slabs.a_group + half / 4;
      for (int64_t g = 0; g < slabs.groups; ++g, a += slabs.a_group) {
        const F f = set1(sf[g / (kBlock / kGroup)] * kUntiny);
        if (half == 0) ahead.step(kN);
        I q[kN];
#pragma GCC unroll 8
        for (int n = 0; n < kN; ++n) {
          const uint8_t* p = codes + n * ld + g * kGroup + half;
          prefetch_l1(p + 512);  // from L2, where `ahead` put it
          q[n] = load_codes(p);
          nan[n] = note_nan(nan[n], q[n]);
        }
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          F w[kN];
#pragma GCC unroll 8
          for (int n = 0; n < kN; ++n) {
            w[n] = mul(decode_tiny(q[n], i), f);
            pin(w[n]);
          }
#pragma GCC unroll 8
          for (int m = 0; m < kM; ++m) {
            F x = load(a + m * kGroup + i * kChains);
            pin(x);
#pragma GCC unroll 8
            for (int n = 0; n < kN; ++n) acc[n][m] = fma(x, w[n], acc[n][m]);
          }
        }
      }
#pragma GCC unroll 8
      for (int n = 0; n < kN; ++n)
#pragma GCC unroll 8
        for (int m = 0; m < kM; ++m) store(chains + (n * kM + m) * kChains + half / 4, acc[n][m]);
    }
    chains += kN * kM * kChains;
    codes += kSlab;
    sf += kSlab / kBlock;
  }
#pragma GCC unroll 8
  for (int n = 0; n < kN; ++n) seen[n] = nan[n];
  next = ahead;
}

// sums[m][n] of kN rows of b and kM of a, added to what is there.
template <int kN, int kM>
void dot_tile(const DotSlabs& slabs, const uint8_t* codes, int64_t ld, Prefetcher& next, I* seen,
              float* sums) {
  constexpr int kCount = kN * kM;
  alignas(64) float chains[(kSlabsAtOnce * kCount + 3) / 4 * 4 * kChains];
  alignas(64) float totals[(kSlabsAtOnce * kCount + 3) / 4 * 4];
  dot_rows<kN, kM>(slabs, codes, ld, next, seen, chains);
  const int64_t count = slabs.count * kCount;
  for (int64_t i = count; i % 4 != 0; ++i) std::memset(chains + i * kChains, 0, kChains * sizeof(float));
  for (int64_t i = 0; i < count; i += 4) add_chains(chains + i * kChains, totals + i);
  for (int64_t s = 0; s < slabs.count; ++s)
    for (int n = 0; n < kN; ++n)
      for (int m = 0; m < kM; ++m) sums[m * kCols + n] += totals[(s * kN + n) * kM + m];
}

using DotFn = void (*)(const DotSlabs&, const uint8_t*, int64_t, Prefetcher&, I*, float*);

template <int kN, int kM>
DotFn dot_for(int64_t num_rows) {
  if constexpr (kM == 1) {
    return dot_tile<kN, 1>;
  } else {
    return num_rows >= kM ? dot_tile<kN, kM> : dot_for<kN, kM - 1>(num_rows);
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

inline DotFn dot_of(int rows_of_b, int64_t rows_of_a) {
  return rows_of_b == 4 ? dot_for<4, kFewRows>(rows_of_a) : dot_for<2, kDotTileRows>(rows_of_a);
}

// Bytes of b beyond the rows that come next: how far ahead of its use a line is on its way from DRAM.
constexpr int64_t kAhead = 16384;

void run_dot(const Fp8GemmParams& p, const Fp8GemmChunk& chunk, int64_t n0) {
  alignas(64) float sums[kDotRows * kCols] = {};
  alignas(64) uint8_t staging[4 * kSlab];
  const int64_t M = chunk.num_rows;
  const RowTiles tiles(M, kDotTileRows);
  const int step = rows_of_b(M);
  const DotFn larger = dot_of(step, tiles.base + 1), smaller = dot_of(step, tiles.base);
  uint64_t nan = 0;
  for (int64_t n = 0; n < min_of(kCols, p.N - n0); n += step) {
    I seen[4];
    for (I& s : seen) s = zero_bytes();
    Prefetcher next(p.b + (n0 + n + step) * p.ldb + kAhead);
    const auto add_slabs = [&](int64_t first, int64_t count, const uint8_t* codes, int64_t ld,
                               int64_t groups) {
      const Prefetcher here = next;
      for (int64_t t = 0; t < tiles.count; ++t) {
        const int64_t m = tiles.begin(t);
        const DotSlabs slabs = {.a = chunk.a + first * kSlab * M + m * kGroup,
                                .a_group = M * kGroup,
                                .sf = block_sf(p, n0, first * kSlab),
                                .groups = groups,
                                .count = count};
        next = here;
        (t < tiles.larger ? larger : smaller)(slabs, codes, ld, next, seen, sums + m * kCols + n);
      }
    };
    // Full slabs straight from b, if all rows exist; what is left through CodeTile.
    const int64_t direct = n0 + n + step <= p.N ? p.K / kSlab : 0;
    for (int64_t s = 0; s < direct; s += kSlabsAtOnce)
      add_slabs(s, min_of(kSlabsAtOnce, direct - s), p.b + (n0 + n) * p.ldb + s * kSlab, p.ldb,
                kGroupsPerSlab);
    for (int64_t s = direct; s < num_slabs(p); ++s) {
      const Slab slab(p, s);
      const CodeTile tile(p, n0 + n, step, slab, staging);
      add_slabs(s, 1, tile.codes, tile.ld, slab.groups);
    }
    for (int r = 0; r < step; ++r) nan |= uint64_t{nan_lanes(seen[r]) != 0} << (n + r);
  }
  finish(p, chunk, n0, nan, sums);
}

}  // namespace
