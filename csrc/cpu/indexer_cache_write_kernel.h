// indexer_cache_write on the CPU. Bound: the memory rate.
#pragma once

#include "cpu/indexer_cache_write.h"
#include "cpu/scale_factor.h"
#include "cpu/simd.h"

namespace {

// A key in pieces, since it may be of any length: twice, the second time from L1.
inline void write_key(const moela::cpu::IndexerCacheWriteParams& p, int64_t token, uint8_t* codes,
                      uint8_t* sf_at) {
  constexpr int64_t kPiece = 512;
  alignas(64) float x[kPiece];
  const int64_t D = p.cache.D;
  const auto piece = [D](int64_t at) { return D - at < kPiece ? D - at : kPiece; };
  uint32_t amax = 0;
  for (int64_t at = 0; at < D; at += kPiece) {
    load_floats(p.k, p.dtype, token * p.ld + at, piece(at), x);
    amax = amax_bits(x, piece(at), amax);
  }
  const float sf = scale_factor(amax, p.ue8m0);
  std::memcpy(sf_at, &sf, sizeof sf);
  for (int64_t at = 0; at < D; at += kPiece) {
    if (D > kPiece) load_floats(p.k, p.dtype, token * p.ld + at, piece(at), x);
    quantize(x, piece(at), sf, codes + at);
  }
}

void indexer_cache_write(const moela::cpu::IndexerCacheWriteParams& p, int64_t begin, int64_t end) {
  [[maybe_unused]] const ExactSubnormals guard;
  const moela::cpu::IndexerCache& c = p.cache;
  for (int64_t token = begin; token < end; ++token) {
    const int64_t slot = p.slots.of(token);
    if (slot < 0) continue;
    const int64_t page = slot / c.page_size, offset = slot % c.page_size;
    write_key(p, token, c.codes(page, offset), c.sf(page, offset));
  }
}

}  // namespace
