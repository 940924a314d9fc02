// Results of mla_decode: to out and lse, or, of a piece of a split request, to memory for the merge.
#pragma once

#include "cuda/mla_decode/mla_pieces.cuh"

namespace moela::cuda::sm90 {

template <MlaFloat kFloat>
MOELA_DEVICE uint32_t rounded_pair(float low, float high) {
  return kFloat == MlaFloat::kBFloat16 ? cvt_bf16x2(low, high) : cvt_f16x2(low, high);
}

// Which row of out and lse, or of piece_out and piece_lse, a row of a request is.
MOELA_DEVICE int64_t stored_row(const MlaDecodeArgs& a, const MlaPiece& piece, int row) {
  return static_cast<int64_t>(piece.is_whole ? piece.request : piece.index) * (a.s_q * a.H) + row;
}

// A thread's sums of a row, times the factor, from column `first` on, two neighbours at a time: rounded to
// `out` if they are the row's result, else as they are to `piece_out`.
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

template <class C>
MOELA_DEVICE void store_sums(const MlaDecodeArgs& a, const MlaPiece& piece, const Acc<C::kHalf>& sums, int r,
                             int row, int first, float factor) {
  if (row >= a.s_q * a.H) return;
  store_sums_of_row<C>(piece.is_whole, a.out, a.piece_out, stored_row(a, piece, row), sums, r, first, factor);
}

MOELA_DEVICE void store_lse(const MlaDecodeArgs& a, const MlaPiece& piece, int row, float lse) {
  if (row >= a.s_q * a.H || lane() % 4 != 0) return;
  stg((piece.is_whole ? a.lse : a.piece_lse) + stored_row(a, piece, row), lse);
}

}  // namespace moela::cuda::sm90
