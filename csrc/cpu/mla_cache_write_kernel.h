// mla_cache_write on the CPU. Bound: the memory rate.
#pragma once

#include "cpu/mla_cache_write.h"
#include "cpu/scale_factor.h"
#include "cpu/simd.h"

namespace {

// In pieces, since a row may be of any length.
inline void convert_row(const void* from, Dtype from_dtype, int64_t at, int64_t n, void* to, Dtype to_dtype) {
  constexpr int64_t kPiece = 512;
  alignas(64) float piece[kPiece];
  for (int64_t i = 0; i < n; i += kPiece) {
    const int64_t count = n - i < kPiece ? n - i : kPiece;
    load_floats(from, from_dtype, at + i, count, piece);
    store_floats(piece, count, to_dtype, to, i);
  }
}

// Codes, scale factors, k_pe. The latter two may lie at any address.
inline void write_bytes(const moela::cpu::MlaCacheWriteParams& p, int64_t token, uint8_t* row) {
  constexpr int64_t kGroup = moela::cpu::kMlaGroup;
  uint8_t* sf_at = row + p.cache.latent;
  for (int64_t k = 0; k < p.cache.latent; k += kGroup, sf_at += sizeof(float)) {
    alignas(64) float x[kGroup];
    load_floats(p.kv_c, p.dtype, token * p.ld_c + k, kGroup, x);
    const float sf = scale_factor(amax_bits(x, kGroup, 0), p.ue8m0);
    quantize(x, kGroup, sf, row + k);
    std::memcpy(sf_at, &sf, sizeof sf);
  }
  for (int64_t k = 0; k < p.cache.rope; ++k) {
    const uint16_t rounded = to_bfloat16(load_float(p.k_pe, p.dtype, token * p.ld_r + k));
    std::memcpy(sf_at + 2 * k, &rounded, sizeof rounded);
  }
}

void mla_cache_write(const moela::cpu::MlaCacheWriteParams& p, int64_t begin, int64_t end) {
  [[maybe_unused]] const ExactSubnormals guard;
  const moela::cpu::MlaCache& c = p.cache;
  for (int64_t token = begin; token < end; ++token) {
    const int64_t slot = p.slots_are_64 ? static_cast<const int64_t*>(p.slots)[token]
                                        : static_cast<const int32_t*>(p.slots)[token];
    if (slot < 0) continue;
    uint8_t* row =
        static_cast<uint8_t*>(c.data) + slot / c.page_size * c.page_bytes + slot % c.page_size * c.slot_bytes;
    if (c.dtype == Dtype::kE4m3) {
      write_bytes(p, token, row);
      continue;
    }
    convert_row(p.kv_c, p.dtype, token * p.ld_c, c.latent, row, c.dtype);
    convert_row(p.k_pe, p.dtype, token * p.ld_r, c.rope, row + c.latent * size_of(c.dtype), c.dtype);
  }
}

}  // namespace
