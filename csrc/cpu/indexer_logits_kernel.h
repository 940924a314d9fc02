// indexer_logits on the CPU: some queries over a tile of keys. Bound: the multiply-add rate, of float32 or of
// pairs of bfloat16, which hold e4m3 exactly (docs/adr/0011).
//
// Keys are decoded once for all queries and heads; in a product a key is broadcast and heads lie in the
// lanes, so nothing is transposed. A word is a column, or with pairs two.
//
// Numerics of a logit: a head's product is one chain over the columns, ascending, of fused multiply-adds, or
// of vdpbf16ps. Chain c of 16 sums, by fused multiply-adds, the heads h with h % 16 == c, ascending; their
// sum, a tree (add_chains), is multiplied by the scale factor. So bits depend on a query and a key only.
#pragma once

#include "cpu/convert.h"
#include "cpu/indexer_logits.h"
#include "cpu/simd.h"
#if defined(MOELA_SIMD_BF16)
#include "cpu/e4m3_bf16.h"
#endif

namespace {

using moela::cpu::IndexerQuery;
using moela::cpu::IndexerShape;
using moela::cpu::IndexerTile;
using moela::cpu::kIndexerHeads;
using moela::cpu::kIndexerKeys;

// Register tiles: keys x vectors of heads. A single vector is multiplied with more keys.
#if defined(MOELA_SIMD_AVX512)
constexpr int kIndexerRows = 12, kIndexerVecs = 2, kIndexerRowsOfOne = 24;
#elif defined(MOELA_SIMD_AVX2)
constexpr int kIndexerRows = 6, kIndexerVecs = 2, kIndexerRowsOfOne = 6;
#elif defined(MOELA_SIMD_NEON)
constexpr int kIndexerRows = 6, kIndexerVecs = 4, kIndexerRowsOfOne = 6;
#else
constexpr int kIndexerRows = 2, kIndexerVecs = 4, kIndexerRowsOfOne = 2;
#endif
constexpr int kIndexerCols = kIndexerVecs * kLanes;
constexpr int kChainVecs = kIndexerHeads / kLanes;  // of the 16 sums of a key
static_assert(kIndexerKeys % kIndexerRows == 0 && kIndexerKeys % kIndexerRowsOfOne == 0,
              "tiles of keys would overlap");
static_assert(kIndexerCols % kIndexerHeads == 0, "a vector of heads must begin at chain 0");

#if defined(MOELA_SIMD_BF16)
constexpr int kWordColumns = 2;
// Keys are times 2^-8; queries make up for it.
constexpr E4m3Tables kIndexerQueryTables(8);
MOELA_INLINE F multiply_word(F key, F q, F sum) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(key), reinterpret_cast<__m512bh>(q));
}

// Whole vectors of words are written, with zeros beyond D.
inline void decode_words(const E4m3Decoder& decoder, const uint8_t* codes, int64_t D, float* words) {
  const I order = _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0);  // so that unpacking restores it
  for (int64_t k = 0; k < D; k += 64) {
    const __mmask64 live = D - k >= 64 ? ~__mmask64{0} : (__mmask64{1} << (D - k)) - 1;
    I halves[2];
    decoder.decode(_mm512_permutexvar_epi64(order, _mm512_maskz_loadu_epi8(live, codes + k)), halves);
    _mm512_storeu_si512(words + k / 2, halves[0]);
    _mm512_storeu_si512(words + k / 2 + 16, halves[1]);
  }
}
inline void decode_key(const uint8_t* codes, int64_t D, float* words) {
  decode_words(E4m3Decoder(), codes, D, words);
}
inline void decode_query(const uint8_t* codes, int64_t D, float* words) {
  decode_words(E4m3Decoder(kIndexerQueryTables), codes, D, words);
}
#else
constexpr int kWordColumns = 1;
MOELA_INLINE F multiply_word(F key, F q, F sum) { return fma(key, q, sum); }

inline void decode_key(const uint8_t* codes, int64_t D, float* words) {
  for (int64_t k = 0; k < D; ++k) words[k] = from_e4m3(codes[k]);
}
inline void decode_query(const uint8_t* codes, int64_t D, float* words) { decode_key(codes, D, words); }
#endif

// Words of two columns come in whole tiles (indexer_logits_amx.h), with zeros beyond D.
inline int64_t words_of(const IndexerShape& s) { return kWordColumns == 1 ? s.D : (s.D + 31) / 32 * 16; }
// From key to key: an odd number of cache lines, so that the rows of a register tile spread over all sets of
// L1; room for whole vectors of decoded codes.
inline int64_t key_words(const IndexerShape& s) { return (words_of(s) + 31) / 32 * 32 + 16; }

// Vectors of heads that are multiplied together: [word][its heads] in `packed`, then all weights.
template <class Visit>
MOELA_INLINE void for_groups_of_heads(const IndexerShape& s, const Visit& visit) {
  const int64_t heads = s.padded_heads();
  int64_t head = 0;
  for (; head + kIndexerCols <= heads; head += kIndexerCols) visit(head, kIndexerCols);
  for (; head < heads; head += kIndexerHeads) visit(head, kIndexerHeads);
}

void indexer_pack(const IndexerShape& s, const IndexerQuery& q) {
  [[maybe_unused]] const ExactSubnormals guard;
  const int64_t words = words_of(s), heads = s.padded_heads();
  std::memset(q.packed, 0, heads * (words + 1) * sizeof(float));
  for_groups_of_heads(s, [&](int64_t first, int64_t width) {
    float* to = q.packed + first * words;
    for (int64_t h = 0; h < width && first + h < s.H; ++h) {
      constexpr int64_t kPiece = 256;
      alignas(64) float piece[kPiece];
      for (int64_t k = 0; k < s.D; k += kPiece) {
        const int64_t n = s.D - k < kPiece ? s.D - k : kPiece;
        decode_query(q.q + (first + h) * s.stride_qh + k, n, piece);
        float* column = to + k / kWordColumns * width + h;
        for (int64_t i = 0; i < (n + kWordColumns - 1) / kWordColumns; ++i) column[i * width] = piece[i];
      }
    }
  });
  std::memcpy(q.packed + heads * words, q.weights, s.H * sizeof(float));
}

// sums[kRows keys][16] = or += weights * relu(keys @ q) over kVecs vectors of heads. Without the pin gcc 12
// loads q again for every key.
template <int kRows, int kVecs>
__attribute__((noinline)) void score_heads(const float* keys, int64_t ld, int64_t words, const float* q,
                                           const float* weights, bool add_to, float* sums) {
  F acc[kRows][kVecs];
#pragma GCC unroll 32
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) acc[m][v] = zero();
  for (int64_t k = 0; k < words; ++k, q += kVecs * kLanes) {
    F x[kVecs];
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      x[v] = load(q + v * kLanes);
      pin(x[v]);
    }
#pragma GCC unroll 32
    for (int m = 0; m < kRows; ++m) {
      const F key = set1(keys[m * ld + k]);
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) acc[m][v] = multiply_word(key, x[v], acc[m][v]);
    }
  }
#pragma GCC unroll 32
  for (int m = 0; m < kRows; ++m) {
    F chain[kChainVecs];
#pragma GCC unroll 4
    for (int c = 0; c < kChainVecs; ++c)
      chain[c] = add_to ? load(sums + m * kIndexerHeads + c * kLanes) : zero();
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v)
      chain[v % kChainVecs] =
          fma(load(weights + v * kLanes), larger(zero(), acc[m][v]), chain[v % kChainVecs]);
#pragma GCC unroll 4
    for (int c = 0; c < kChainVecs; ++c) store(sums + m * kIndexerHeads + c * kLanes, chain[c]);
  }
}

// What score() does in its scratch: see indexer_scratch_floats.
struct IndexerScratch {
  IndexerScratch(const IndexerShape& s, const IndexerTile& tile, float* scratch)
      : ld(key_words(s)),
        keys(scratch),
        sums(keys + kIndexerKeys * ld),
        sf(sums + kIndexerKeys * kIndexerHeads),
        logits(sf + kIndexerKeys),
        products(logits + kIndexerKeys) {
    for (int64_t i = 0; i < tile.count; ++i) {
      decode_key(tile.codes[i], s.D, keys + i * ld);
      std::memcpy(sf + i, tile.sf[i], sizeof(float));
    }
    if (s.H == 0) std::memset(sums, 0, kIndexerKeys * kIndexerHeads * sizeof(float));
  }
  // Keys [begin, end) of the tile, from their sums.
  void write_logits(const IndexerTile& tile, int64_t begin, int64_t end, const IndexerQuery& q) const {
    for (int64_t i = begin / 4 * 4; i < end; i += 4) add_chains(sums + i * kIndexerHeads, logits + i);
    for (int64_t i = begin; i < end; ++i) q.logits[tile.first + i] = logits[i] * sf[i];
  }
  int64_t ld;
  float* keys;      // [key][ld]
  float* sums;      // [key][16]
  float* sf;        // [key]
  float* logits;    // [key]
  float* products;  // [32 keys][head]
};

// Calls visit(query, begin, end) for the queries that see keys [begin, end) of the tile.
template <class Visit>
MOELA_INLINE void for_queries(const IndexerTile& tile, const IndexerQuery* queries, int64_t num_queries,
                              const Visit& visit) {
  for (const IndexerQuery* q = queries; q < queries + num_queries; ++q) {
    const int64_t begin = q->begin > tile.first ? q->begin - tile.first : 0;
    const int64_t end = q->end < tile.first + tile.count ? q->end - tile.first : tile.count;
    if (begin < end) visit(*q, begin, end);
  }
}

void indexer_score(const IndexerShape& s, const IndexerTile& tile, const IndexerQuery* queries,
                   int64_t num_queries, float* memory) {
  [[maybe_unused]] const ExactSubnormals guard;
  const int64_t words = words_of(s), heads = s.padded_heads();
  const IndexerScratch scratch(s, tile, memory);
  for_queries(tile, queries, num_queries, [&](const IndexerQuery& q, int64_t begin, int64_t end) {
    const auto all_keys = [&](auto rows, auto vecs, int64_t head) {
      for (int64_t i = begin / rows * rows; i < end; i += rows)
        score_heads<rows, vecs>(scratch.keys + i * scratch.ld, scratch.ld, words, q.packed + head * words,
                                q.packed + heads * words + head, head > 0, scratch.sums + i * kIndexerHeads);
    };
    for_groups_of_heads(s, [&](int64_t head, int64_t width) {
      if (width == kIndexerCols)
        all_keys(Constant<kIndexerRows>{}, Constant<kIndexerVecs>{}, head);
      else
        all_keys(Constant<kIndexerRowsOfOne>{}, Constant<kChainVecs>{}, head);
    });
    scratch.write_logits(tile, begin, end, q);
  });
}

constexpr moela::cpu::IndexerLogitsKernels kIndexerLogitsKernels = {indexer_pack, indexer_score};

}  // namespace
