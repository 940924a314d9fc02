// Where the keys of a request lie in its pages; the kernels are those of indexer_logits.
#pragma once

#include "cpu/indexer_cache.h"
#include "cpu/indexer_logits.h"

namespace moela::cpu {

struct IndexerPages {
  IndexerCache cache;
  const int32_t* block_table;  // [B, ...], rows stride_tb apart
  int64_t stride_tb;

  void find(int64_t request, IndexerTile& tile) const {
    for (int64_t i = 0; i < tile.count; ++i) {
      const int64_t key = tile.first + i, offset = key % cache.page_size;
      const int64_t page = block_table[request * stride_tb + key / cache.page_size];
      tile.codes[i] = cache.codes(page, offset);
      tile.sf[i] = cache.sf(page, offset);
    }
  }
};

}  // namespace moela::cpu
