// Interface of the CPU mla_norm_rope_cache_write. Definition:
// python/moela/reference/mla_norm_rope_cache_write.py.
#pragma once

#include <cstdint>

#include "cpu/mla_cache.h"
#include "cpu/slots.h"

namespace moela::cpu {

struct MlaNormRopeCacheWriteParams {
  const void* kv;  // [T, latent + rope] of dtype, rows ld elements apart
  Dtype dtype;
  int64_t ld;
  const void* weight;  // [latent]
  Dtype weight_dtype;
  const void* cos;  // [T, rope / 2] of angle_dtype, rows ld_cos elements apart; null where rope is 0
  const void* sin;
  Dtype angle_dtype;
  int64_t ld_cos;
  int64_t ld_sin;
  MlaCache cache;
  Slots slots;  // [T]
  float eps;
  bool interleaved;
  bool ue8m0;
};

// Writes the rows of tokens [begin, end).
using MlaNormRopeCacheWrite = void (*)(const MlaNormRopeCacheWriteParams&, int64_t begin, int64_t end);

}  // namespace moela::cpu
