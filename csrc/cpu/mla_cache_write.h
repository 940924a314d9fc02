// Interface of the CPU mla_cache_write. Definition: python/moela/reference/mla_cache_write.py.
#pragma once

#include <cstdint>

#include "cpu/mla_cache.h"
#include "cpu/slots.h"

namespace moela::cpu {

struct MlaCacheWriteParams {
  const void* kv_c;  // [T, latent] of dtype, rows ld_c elements apart
  const void* k_pe;  // [T, rope] of dtype, rows ld_r elements apart
  Dtype dtype;
  int64_t ld_c;
  int64_t ld_r;
  MlaCache cache;
  Slots slots;  // [T]
  bool ue8m0;
};

// Writes the rows of tokens [begin, end).
using MlaCacheWrite = void (*)(const MlaCacheWriteParams&, int64_t begin, int64_t end);

}  // namespace moela::cpu
