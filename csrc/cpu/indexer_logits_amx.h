// indexer_logits with the tiles of AMX: 16 keys x 16 heads x 32 columns an instruction. Bound: decoding keys
// for one query, for many the tiles. Included by isa_amx_bf16.cpp only.
//
// Numerics: as indexer_logits_kernel.h, but for a head's product, which is that of amx_tile.h.
#pragma once

#include "cpu/amx_tile.h"
#include "cpu/indexer_logits_kernel.h"

namespace {

constexpr int kTileKeys = 2 * kTile;

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
        const TileOperand keys = {.words = scratch.keys + i * scratch.ld,
                                  .row = scratch.ld,
                                  .second = kTile * scratch.ld,
                                  .step = kTile};
        const TileOperand of_heads = {
            .words = q.packed + head * words, .row = width, .second = kTile, .step = kTile * width};
        if (width == kIndexerCols)
          multiply_tiles<2, 2>(keys, of_heads, words / kTile, scratch.products + head, heads);
        else
          multiply_tiles<2, 1>(keys, of_heads, words / kTile, scratch.products + head, heads);
      });
      weigh_products(scratch.products, q.packed + heads * words, heads, scratch.sums + i * kIndexerHeads);
    }
    scratch.write_logits(tile, begin, end, q);
  });
}

}  // namespace
