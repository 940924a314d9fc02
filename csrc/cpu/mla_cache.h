// The row formats of the latent cache on the CPU. Definition: python/moela/reference/_mla_cache.py.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"

namespace moela::cpu {

constexpr int64_t kMlaGroup = 128;  // columns of kv_c that share a scale factor

// A cache [num_pages, page_size, row].
struct MlaCache {
  void* data;
  Dtype dtype;  // of a float type; kE4m3: rows of bytes
  int64_t latent;
  int64_t rope;
  int64_t num_pages;
  int64_t page_size;
  int64_t page_bytes;  // from page to page
  int64_t slot_bytes;  // from slot to slot of a page
};

}  // namespace moela::cpu
