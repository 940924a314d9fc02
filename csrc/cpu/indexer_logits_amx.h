// indexer_logits with the tiles of AMX: 16 keys x 16 heads x 32 columns an instruction. Bound: decoding keys
// for one query, for many the tiles. Included by isa_amx_bf16.cpp only.
//
// Numerics: as indexer_logits_kernel.h, but for a head's product: for each 32 columns, ascending, its even
// and its odd columns are summed by themselves, and these two sums are added to it (tdpbf16ps).
#pragma once

#include "cpu/amx.h"
#include "cpu/indexer_logits_kernel.h"

namespace {

constexpr int kTileKeys = 32;  // two tiles

// products[32 keys][width] = keys @ q, q [word][width], of 32 or 16 heads.
template <int kWidth>
void multiply_tiles(const float* keys, int64_t ld, int64_t words, const float* q, float* products,
                    int64_t ldp) {
  asm volatile("" ::: "memory");  // gcc 12 does not know that loading a tile reads memory
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  const int64_t key_bytes = ld * 4, q_bytes = kWidth * 4;
  for (int64_t k = 0; k < words; k += kTile, keys += kTile, q += kTile * kWidth) {
    _tile_loadd(4, keys, key_bytes);
    _tile_loadd(5, keys + kTile * ld, key_bytes);
    _tile_loadd(6, q, q_bytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 5, 6);
    if constexpr (kWidth == 2 * kTile) {
      _tile_loadd(7, q + kTile, q_bytes);
      _tile_dpbf16ps(2, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, products, ldp * 4);
  _tile_stored(1, products + kTile * ldp, ldp * 4);
  if constexpr (kWidth == 2 * kTile) {
    _tile_stored(2, products + kTile, ldp * 4);
    _tile_stored(3, products + kTile * ldp + kTile, ldp * 4);
  }
}

// sums[key][16] of the products of all heads.
inline void weigh_products(const float* products, const float* weights, int64_t heads, float* sums) {
  for (int key = 0; key < kTileKeys; ++key, products += heads, sums += kIndexerHeads) {
    F sum = zero();
    for (int64_t h = 0; h < heads; h += kLanes)
      sum = fma(load(weights + h), larger(zero(), load(products + h)), sum);
    store(sums, sum);
  }
}

void indexer_score_tiles(const IndexerShape& s, const IndexerTile& tile, const IndexerQuery* queries,
                         int64_t num_queries, float* memory) {
  static_assert(kIndexerKeys % kTileKeys == 0 && kIndexerCols == 2 * kTile && kIndexerHeads == kTile,
                "keys and heads come in whole tiles");
  [[maybe_unused]] const ExactSubnormals guard;
  const Tiles tiles;
  const int64_t words = words_of(s), heads = s.padded_heads();
  const IndexerScratch scratch(s, tile, memory);
  for_queries(tile, queries, num_queries, [&](const IndexerQuery& q, int64_t begin, int64_t end) {
    for (int64_t i = begin / kTileKeys * kTileKeys; i < end; i += kTileKeys) {
      for_groups_of_heads(s, [&](int64_t head, int64_t width) {
        const auto multiply = width == kIndexerCols ? multiply_tiles<2 * kTile> : multiply_tiles<kTile>;
        multiply(scratch.keys + i * scratch.ld, scratch.ld, words, q.packed + head * words,
                 scratch.products + head, heads);
      });
      weigh_products(scratch.products, q.packed + heads * words, heads, scratch.sums + i * kIndexerHeads);
    }
    scratch.write_logits(tile, begin, end, q);
  });
}

}  // namespace
