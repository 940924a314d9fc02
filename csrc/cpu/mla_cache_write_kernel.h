// mla_cache_write on the CPU. Bound: the memory rate.
#pragma once

#include "cpu/mla_cache_write.h"
#include "cpu/mla_row.h"

namespace {

void mla_cache_write(const moela::cpu::MlaCacheWriteParams& p, int64_t begin, int64_t end) {
  [[maybe_unused]] const ExactSubnormals guard;
  alignas(64) float x[kMlaGroup];
  for (int64_t token = begin; token < end; ++token) {
    uint8_t* row = row_of(p.cache, p.slots, token);
    if (row == nullptr) continue;
    for_pieces(p.cache.latent, kMlaGroup, [&](int64_t k, int64_t n) {
      load_floats(p.kv_c, p.dtype, token * p.ld_c + k, n, x);
      write_latent(p.cache, row, k, n, x, p.ue8m0);
    });
    for_pieces(p.cache.rope, kMlaGroup, [&](int64_t k, int64_t n) {
      load_floats(p.k_pe, p.dtype, token * p.ld_r + k, n, x);
      write_rope(p.cache, row, k, n, x);
    });
  }
}

}  // namespace
