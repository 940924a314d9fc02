// The pages of the indexer's key cache on the CPU. Definition: python/moela/reference/_indexer_cache.py.
#pragma once

#include <cstdint>

namespace moela::cpu {

constexpr int64_t kIndexerSfBytes = 4;  // of a key's scale factor

// [num_pages, page_size, D + 4]: a page has the codes of all its keys, then their scale factors, which may
// lie at any address.
struct IndexerCache {
  uint8_t* data;
  int64_t D;
  int64_t page_size;
  int64_t page_bytes;  // from page to page

  uint8_t* codes(int64_t page, int64_t offset) const { return data + page * page_bytes + offset * D; }
  uint8_t* sf(int64_t page, int64_t offset) const {
    return data + page * page_bytes + page_size * D + offset * kIndexerSfBytes;
  }
};

}  // namespace moela::cpu
