// A thread's sums to memory.
#pragma once

#include "cuda/mla_decode/mla_attend.cuh"

namespace moela::cuda::sm90 {

// Its sums of a row, times the factor, from column `first` on, two neighbours at a time: rounded to `out` if
// they are the row's result, else as they are to `piece_out`.
template <class C>
MOELA_DEVICE void store_sums_of_row(bool is_whole, void* out, float* piece_out, int64_t row,
                                    const Acc<C::kHalf>& sums, int r, int first, float factor) {
  const int64_t at = row * C::kV + first + 2 * (lane() % 4);
  if (is_whole) {
    uint16_t* to = static_cast<uint16_t*>(out) + at;
    MOELA_UNROLL
    for (int i = 2 * r; i < C::kHalf / 2; i += 4)
      stg(reinterpret_cast<uint32_t*>(to + i / 4 * 8),
          rounded_pair<C::kFloat>(sums.get(i) * factor, sums.get(i + 1) * factor));
  } else {
    float* to = piece_out + at;
    MOELA_UNROLL
    for (int i = 2 * r; i < C::kHalf / 2; i += 4)
      stg(reinterpret_cast<uint64_t*>(to + i / 4 * 8),
          static_cast<uint64_t>(bits_of(sums.get(i + 1) * factor)) << 32 | bits_of(sums.get(i) * factor));
  }
}

}  // namespace moela::cuda::sm90
