// Writing a row of the latent cache, in pieces of at most kMlaGroup columns. Definition: encode in
// python/moela/reference/_mla_cache.py.
#pragma once

#include "cpu/mla_cache.h"
#include "cpu/scale_factor.h"
#include "cpu/simd.h"
#include "cpu/slots.h"

namespace {

using moela::cpu::kMlaGroup;
using moela::cpu::MlaCache;
using moela::cpu::Slots;

// piece(k, n) for columns [k, k + n) of `size` columns.
template <class Piece>
inline void for_pieces(int64_t size, int64_t step, const Piece& piece) {
  for (int64_t k = 0; k < size; k += step) piece(k, size - k < step ? size - k : step);
}

// Where the row of a token goes; null where it has no slot.
inline uint8_t* row_of(const MlaCache& c, const Slots& slots, int64_t token) {
  const int64_t slot = slots.of(token);
  if (slot < 0) return nullptr;
  return static_cast<uint8_t*>(c.data) + slot / c.page_size * c.page_bytes +
         slot % c.page_size * c.slot_bytes;
}

// Columns [k, k + n) of the latent, k a multiple of kMlaGroup; of a row of bytes a whole group.
inline void write_latent(const MlaCache& c, uint8_t* row, int64_t k, int64_t n, const float* x, bool ue8m0) {
  if (c.dtype != Dtype::kE4m3) {
    store_floats(x, n, c.dtype, row, k);
    return;
  }
  const float sf = scale_factor(amax_bits(x, kMlaGroup, 0), ue8m0);
  quantize(x, kMlaGroup, sf, row + k);
  std::memcpy(row + c.latent + k / kMlaGroup * sizeof sf, &sf, sizeof sf);  // at any address
}

// Columns [k, k + n) of the rotated part.
inline void write_rope(const MlaCache& c, uint8_t* row, int64_t k, int64_t n, const float* x) {
  if (c.dtype != Dtype::kE4m3) {
    store_floats(x, n, c.dtype, row, c.latent + k);
    return;
  }
  uint16_t rounded[kMlaGroup];
  store_floats(x, n, Dtype::kBFloat16, rounded, 0);
  std::memcpy(row + c.latent + c.latent / kMlaGroup * sizeof(float) + k * sizeof rounded[0], rounded,
              n * sizeof rounded[0]);
}

}  // namespace
