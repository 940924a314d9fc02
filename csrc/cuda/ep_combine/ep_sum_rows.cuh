// A warp adds up rows in float32, in a given order.
#pragma once

#include "cuda/block/quant_input.h"
#include "cuda/hopper/hopper.h"

namespace moela::cuda::sm90 {

template <QuantInput kInput>
constexpr int kElementBytes = kInput == QuantInput::kFloat32 ? 4 : 2;

// What a lane moves at once: 16 bytes, or one element of rows that are not aligned.
template <QuantInput kInput, bool kAligned>
struct EpPiece {
  static constexpr int kElements = 16 / kElementBytes<kInput>;
  using Type = Vec4;
};
template <QuantInput kInput>
struct EpPiece<kInput, false> {
  static constexpr int kElements = 1;
  using Type = uint16_t;
};
template <>
struct EpPiece<QuantInput::kFloat32, false> {
  static constexpr int kElements = 1;
  using Type = uint32_t;
};

template <QuantInput kInput>
MOELA_DEVICE float float_of_half(uint32_t word, int high) {
  const auto half = static_cast<uint16_t>(word >> (high * 16));
  return kInput == QuantInput::kBFloat16 ? cvt_f32_of_bf16(half) : cvt_f32_of_f16(half);
}

template <QuantInput kInput>
MOELA_DEVICE uint32_t halves_of(float low, float high) {
  return kInput == QuantInput::kBFloat16 ? cvt_bf16x2(low, high) : cvt_f16x2(low, high);
}

template <QuantInput kInput>
MOELA_DEVICE void ep_unpack(const Vec4& v, float (&x)[16 / kElementBytes<kInput>]) {
  const uint32_t words[4] = {v.x, v.y, v.z, v.w};
  MOELA_UNROLL
  for (int i = 0; i < 16 / kElementBytes<kInput>; ++i) {
    x[i] =
        kInput == QuantInput::kFloat32 ? float_of(words[i % 4]) : float_of_half<kInput>(words[i / 2], i % 2);
  }
}
template <QuantInput kInput>
MOELA_DEVICE void ep_unpack(uint32_t word, float (&x)[1]) {
  x[0] = float_of(word);
}
template <QuantInput kInput>
MOELA_DEVICE void ep_unpack(uint16_t half, float (&x)[1]) {
  x[0] = float_of_half<kInput>(half, 0);
}

template <QuantInput kInput, bool kAligned>
MOELA_DEVICE typename EpPiece<kInput, kAligned>::Type ep_pack(
    const float (&x)[EpPiece<kInput, kAligned>::kElements]) {
  if constexpr (kAligned && kInput == QuantInput::kFloat32) {
    return Vec4{bits_of(x[0]), bits_of(x[1]), bits_of(x[2]), bits_of(x[3])};
  } else if constexpr (kAligned) {
    return Vec4{halves_of<kInput>(x[0], x[1]), halves_of<kInput>(x[2], x[3]), halves_of<kInput>(x[4], x[5]),
                halves_of<kInput>(x[6], x[7])};
  } else if constexpr (kInput == QuantInput::kFloat32) {
    return bits_of(x[0]);
  } else {
    return static_cast<uint16_t>(halves_of<kInput>(x[0], 0.f));
  }
}

struct EpTerm {
  const uint8_t* row;  // null: none
  float weight;
};

// store(i, piece i of the sum of term(0), ..., term(count - 1)) for every piece of H elements. load: of a
// piece from memory. All lanes; four pieces of a lane are under way at once.
template <QuantInput kInput, bool kAligned, class Term, class Load, class Store>
MOELA_DEVICE void ep_sum_rows(int count, int H, Term term, Load load, Store store) {
  using Piece = EpPiece<kInput, kAligned>;
  using Type = typename Piece::Type;
  constexpr int kAtOnce = 4;
  const int pieces = H / Piece::kElements;
  for (int first = lane(); first - lane() < pieces; first += 32 * kAtOnce) {
    float sum[kAtOnce][Piece::kElements] = {};
    for (int k = 0; k < count; ++k) {
      const EpTerm of_row = term(k);
      if (of_row.row == nullptr) continue;
      const auto* row = reinterpret_cast<const Type*>(of_row.row);
      Type piece[kAtOnce];
      MOELA_UNROLL
      for (int u = 0; u < kAtOnce; ++u) {
        piece[u] = first + 32 * u < pieces ? load(row + first + 32 * u) : Type{};
      }
      MOELA_UNROLL
      for (int u = 0; u < kAtOnce; ++u) {
        float x[Piece::kElements];
        ep_unpack<kInput>(piece[u], x);
        MOELA_UNROLL
        for (int i = 0; i < Piece::kElements; ++i) sum[u][i] += x[i] * of_row.weight;
      }
    }
    MOELA_UNROLL
    for (int u = 0; u < kAtOnce; ++u) {
      if (first + 32 * u < pieces) store(first + 32 * u, ep_pack<kInput, kAligned>(sum[u]));
    }
  }
}

}  // namespace moela::cuda::sm90
