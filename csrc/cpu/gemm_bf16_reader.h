// How rows of b become vectors of pairs of bfloat16. Part of gemm_kernel.h; gemm_bf16.h has the numerics.
#pragma once

#include "cpu/gemm_bf16_pack.h"

namespace {

constexpr int kBf16Lanes = 16;   // rows of b side by side: the lanes of a vector
constexpr int kBf16Quarter = 4;  // of them in a 128-bit lane
constexpr int kSegment = 16;     // bytes of a row of b in a 128-bit lane
constexpr int kSegments = kLine / kSegment;

// A line of rows q, q + 4, q + 8 and q + 12 of b, from p on, into lanes[4 * s + q]: 128-bit lane l is segment
// s of row q + 4 * l.
MOELA_INLINE void load_lanes(const uint8_t* p, int64_t ld, int64_t q, I* lanes) {
  p += q * ld;
  const I a = load_words(p), b = load_words(p + 4 * ld), c = load_words(p + 8 * ld),
          d = load_words(p + 12 * ld);
  const I ab_low = _mm512_shuffle_i32x4(a, b, 0x44), ab_high = _mm512_shuffle_i32x4(a, b, 0xEE);
  const I cd_low = _mm512_shuffle_i32x4(c, d, 0x44), cd_high = _mm512_shuffle_i32x4(c, d, 0xEE);
  lanes += q;
  lanes[0] = _mm512_shuffle_i32x4(ab_low, cd_low, 0x88);
  lanes[4] = _mm512_shuffle_i32x4(ab_low, cd_low, 0xDD);
  lanes[8] = _mm512_shuffle_i32x4(ab_high, cd_high, 0x88);
  lanes[12] = _mm512_shuffle_i32x4(ab_high, cd_high, 0xDD);
}

// The pairs of a segment: lane n of out[i] is pair i of row n. `lanes`: the four vectors of the segment.
template <class Codec>
struct Bf16Reader;

template <>
struct Bf16Reader<E4m3Codec> {
  static constexpr int kPairs = 8;
  MOELA_INLINE void pairs(const I* lanes, I out[kPairs]) const {
    const I ab_low = _mm512_unpacklo_epi16(lanes[0], lanes[1]);
    const I ab_high = _mm512_unpackhi_epi16(lanes[0], lanes[1]);
    const I cd_low = _mm512_unpacklo_epi16(lanes[2], lanes[3]);
    const I cd_high = _mm512_unpackhi_epi16(lanes[2], lanes[3]);
    // Codes of a pair of four rows and those of the next pair in each 128-bit lane.
    decoder.decode(_mm512_unpacklo_epi32(ab_low, cd_low), out);
    decoder.decode(_mm512_unpackhi_epi32(ab_low, cd_low), out + 2);
    decoder.decode(_mm512_unpacklo_epi32(ab_high, cd_high), out + 4);
    decoder.decode(_mm512_unpackhi_epi32(ab_high, cd_high), out + 6);
  }
  E4m3Decoder decoder;
};

template <>
struct Bf16Reader<BFloat16Codec> {
  static constexpr int kPairs = 4;
  MOELA_INLINE void pairs(const I* lanes, I out[kPairs]) const {
    const I ab_low = _mm512_unpacklo_epi32(lanes[0], lanes[1]);
    const I ab_high = _mm512_unpackhi_epi32(lanes[0], lanes[1]);
    const I cd_low = _mm512_unpacklo_epi32(lanes[2], lanes[3]);
    const I cd_high = _mm512_unpackhi_epi32(lanes[2], lanes[3]);
    out[0] = _mm512_unpacklo_epi64(ab_low, cd_low);
    out[1] = _mm512_unpackhi_epi64(ab_low, cd_low);
    out[2] = _mm512_unpacklo_epi64(ab_high, cd_high);
    out[3] = _mm512_unpackhi_epi64(ab_high, cd_high);
  }
};

// Up to kBf16Lanes rows of b and the columns [k0, k0 + cols) where they are whole blocks and sixteen rows,
// else a copy in `staging`, whose rows hold kSlab elements, with zeros around it.
template <class Codec>
struct Bf16Tile {
  static constexpr int64_t kElement = sizeof(typename Codec::Element);
  Bf16Tile(const GemmProblem& p, int64_t n0, int64_t rows, int64_t k0, int64_t cols, uint8_t* staging)
      : codes(row_of_b(p, n0) + k0 * kElement), ld(p.stride_bn * kElement) {
    if (rows == kBf16Lanes && cols % kBlock == 0) return;
    std::memset(staging, 0, kBf16Lanes * kSlab * kElement);
    for (int64_t n = 0; n < rows; ++n)
      std::memcpy(staging + n * kSlab * kElement, codes + n * ld, cols * kElement);
    codes = staging;
    ld = kSlab * kElement;
  }
  const uint8_t* codes;
  int64_t ld;  // bytes
};

}  // namespace
