// Where the keys of a request end: which rows see which, and what becomes of those that not all see.
#pragma once

#include "cuda/mla_decode/mla_attend.cuh"
#include "cuda/mla_decode/mla_pieces.cuh"

namespace moela::cuda::sm90 {

// Which keys of a request, or of a block, the rows of a tile see: those before `all` every row, those from
// `some` on none.
struct MlaSeen {
  int all, some;
};

// Keys of the request that a row of it sees: bottom-right causal.
MOELA_DEVICE int keys_seen(const MlaDecodeArgs& a, const MlaPiece& piece, int row) {
  return a.causal ? piece.seqlen - (piece.rows.queries - 1 - row / a.H) : piece.seqlen;
}

template <class C>
MOELA_DEVICE MlaSeen seen_keys(const MlaDecodeArgs& a, const MlaPiece& piece) {
  const int first = piece.rows.first, end = piece.rows.queries * a.H, last = first + C::kRows;
  return {keys_seen(a, piece, first), keys_seen(a, piece, (last < end ? last : end) - 1)};
}

template <class C>
MOELA_DEVICE MlaSeen seen_in_block(const MlaSeen& seen, int block) {
  const auto within = [&](int keys) {
    const int n = keys - block * C::kKeys;
    return n < 0 ? 0 : n < C::kKeys ? n : C::kKeys;
  };
  return {within(seen.all), within(seen.some)};
}

// Of keys that only some rows of the tile see, for those: on the tensor core the weight 0 would make NaN of a
// NaN or an infinity, which may not reach the others. Every key has its own weight and value.
template <class C, int kGroup>
MOELA_DEVICE void add_keys_of_some(const MlaDecodeArgs& a, const MlaPiece& piece, int block,
                                   const MlaSeen& seen, int stage, MlaHalf<C, kGroup>& half) {
  const SmemAddr values = half.values(stage), weights = C::weights(stage);
  int limit[2];
  MOELA_UNROLL
  for (int r = 0; r < 2; ++r)
    limit[r] = keys_seen(a, piece, piece.rows.first + half.row(r)) - block * C::kKeys;
  for (int key = seen.all; key < seen.some; ++key) {
    float weight[2];
    MOELA_UNROLL
    for (int r = 0; r < 2; ++r)
      weight[r] = to_float32<C>(lds<uint16_t>(weights + panel_byte(half.row(r), key * 2)));
    MOELA_UNROLL
    for (int i = 0; i < C::kHalf / 2; i += 4) {
      const int column = i / 4 * 8 + 2 * (lane() % 4);
      const auto pair = lds<uint32_t>(values + static_cast<uint32_t>(column / C::kPanel) * C::kPanelBytes +
                                      panel_byte(key, column % C::kPanel * 2));
      MOELA_UNROLL
      for (int j = 0; j < 4; ++j) {
        const float value = to_float32<C>(static_cast<uint16_t>(pair >> 16 * (j % 2)));
        const float sum = half.sums.get(i + j);
        half.sums.set(i + j, key < limit[j / 2] ? sum + weight[j / 2] * value : sum);
      }
    }
  }
}

// What no row or only some see: the tensor core multiplies zeros with the weight 0.
// Panels of values, by a warpgroup.
template <class C, int kPanels>
MOELA_DEVICE void clear_keys(int first, SmemAddr values) {
  constexpr int kChunks = kPanels * 8;  // 16 bytes each
  for (int i = tid() % 128; i < (C::kKeys - first) * kChunks; i += 128)
    sts(values + static_cast<uint32_t>(i % kChunks / 8) * C::kPanelBytes +
            static_cast<uint32_t>((first + i / kChunks) * 128 + i % 8 * 16),
        Vec4{0, 0, 0, 0});
  fence_proxy_async_shared();
}

}  // namespace moela::cuda::sm90
