// Interface of the CPU indexer_cache_write. Definition: python/moela/reference/indexer_cache_write.py.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"
#include "cpu/indexer_cache.h"
#include "cpu/slots.h"

namespace moela::cpu {

struct IndexerCacheWriteParams {
  const void* k;  // [T, D] of dtype, rows ld elements apart
  Dtype dtype;
  int64_t ld;
  IndexerCache cache;
  Slots slots;  // [T]
  bool ue8m0;
};

// Writes the keys of tokens [begin, end).
using IndexerCacheWrite = void (*)(const IndexerCacheWriteParams&, int64_t begin, int64_t end);

}  // namespace moela::cpu
