// Rows of the cache on their way to a tile: from global memory to registers, and from there, as 16-bit
// floats, to the layout that wgmma reads keys in and, transposed, values. A warp takes four rows at a time,
// eight lanes a row; where a row is null, it becomes zeros.
#pragma once

#include "cuda/block/softmax.cuh"
#include "cuda/mla_decode/mla_attend.cuh"

namespace moela::cuda::sm90 {

constexpr int kMlaRowsAtOnce = 4;

// This lane's row of the four. The eight lanes that store together have two rows, one after the other, and of
// each every second 16 bytes of a panel: with its swizzle these are in different banks.
MOELA_DEVICE int lane_row() { return lane() / 16 * 2 + lane() / 4 % 2; }
MOELA_DEVICE int lane_chunk() { return lane() % 4 * 2 + lane() / 8 % 2; }
// The same of rows of codes, 16 of which make two chunks of 16 bytes: 0 to 7 of two panels.
MOELA_DEVICE int lane_codes() { return lane() % 4 + lane() / 8 % 2 * 4; }

template <class C>
MOELA_DEVICE void store_chunk(SmemAddr tile, int panel, int row, int chunk, const Vec4& value) {
  sts(tile + static_cast<uint32_t>(panel) * C::kPanelBytes + panel_byte(row, chunk * 16), value);
}

// Not ldg_nc, which the compiler may move to where its value is used.
template <class T>
MOELA_DEVICE T load_part(const uint8_t* row, int bytes) {
  return ldg(reinterpret_cast<const T*>(row + bytes));
}

// Half a row of 16-bit floats.
template <class C>
struct MlaHalfRowOfFloats {
  static constexpr int kAhead = 2, kPanelsOfHalf = (C::kPanels + 1) / 2;
  Vec4 chunks[kPanelsOfHalf];

  MOELA_DEVICE void load(const uint8_t* row, int half) {
    MOELA_UNROLL
    for (Vec4& chunk : chunks) chunk = {};
    if (row == nullptr) return;
    MOELA_UNROLL
    for (int i = 0; i < kPanelsOfHalf; ++i) {
      const int panel = half * kPanelsOfHalf + i;
      if (panel < C::kPanels) chunks[i] = load_part<Vec4>(row, panel * 128 + lane_chunk() * 16);
    }
  }
  MOELA_DEVICE void store(SmemAddr tile, int row, int half) const {
    MOELA_UNROLL
    for (int i = 0; i < kPanelsOfHalf; ++i) {
      const int panel = half * kPanelsOfHalf + i;
      if (panel < C::kPanels) store_chunk<C>(tile, panel, row, lane_chunk(), chunks[i]);
    }
  }
};

// The e4m3 code in a byte of a word as a float32 that is 2^-120 times its value, exactly: sign, exponent and
// fraction are moved to where a float32 has them, whose exponent has a bias of 127, not 7. This holds for
// subnormal numbers too, and not for the codes of NaN.
MOELA_DEVICE float moved_code(uint32_t word, int byte) {
  const auto top = static_cast<int32_t>(word << (24 - 8 * byte));
  return float_of(static_cast<uint32_t>(top >> 4) & 0x87F00000);
}

// Half a row of e4m3 codes, scale factors of 128 each, and bfloat16; that is in the second half.
template <class C>
struct MlaHalfRowOfBytes {
  static constexpr int kAhead = 3, kGroupsOfHalf = C::kV / 256, kFactors = C::kV,
                       kRope = kFactors + C::kV / 128 * 4;
  static constexpr bool kHasRope = C::kD > C::kV;
  Vec4 codes[kGroupsOfHalf], rope;
  uint64_t factors;

  MOELA_DEVICE void load(const uint8_t* row, int half) {
    MOELA_UNROLL
    for (Vec4& chunk : codes) chunk = {};
    rope = {};
    factors = 0;
    if (row == nullptr) return;
    MOELA_UNROLL
    for (int i = 0; i < kGroupsOfHalf; ++i)
      codes[i] = load_part<Vec4>(row, (half * kGroupsOfHalf + i) * 128 + lane_codes() * 16);
    factors = load_part<uint64_t>(row, kFactors + half * 8);
    if (kHasRope && half == 1) rope = load_part<Vec4>(row, kRope + lane_chunk() * 16);
  }

  MOELA_DEVICE void store(SmemAddr tile, int row, int half) const {
    MOELA_UNROLL
    for (int i = 0; i < kGroupsOfHalf; ++i) {
      const Vec4& c = codes[i];
      const float factor = has_nan(c) ? kNan : float_of(static_cast<uint32_t>(factors >> 32 * i));
      const int panel = 2 * (half * kGroupsOfHalf + i) + lane_codes() / 4, chunk = lane_codes() % 4 * 2;
      store_chunk<C>(tile, panel, row, chunk, values(c.x, c.y, factor));
      store_chunk<C>(tile, panel, row, chunk + 1, values(c.z, c.w, factor));
    }
    if (kHasRope && half == 1) store_chunk<C>(tile, C::kV / C::kPanel, row, lane_chunk(), rope);
  }

 private:
  // A NaN in a key makes one of its score, so it need not stay in its place.
  static MOELA_DEVICE bool has_nan(const Vec4& c) {
    const auto carry = [](uint32_t word) { return (word & 0x7F7F7F7F) + 0x01010101; };
    return ((carry(c.x) | carry(c.y) | carry(c.z) | carry(c.w)) & 0x80808080) != 0;
  }
  // The product with the factor is the float32 one of the definition, and is rounded once more.
  static MOELA_DEVICE uint32_t pair(uint32_t word, int byte, float factor) {
    return cvt_bf16x2(moved_code(word, byte) * 0x1p120f * factor,
                      moved_code(word, byte + 1) * 0x1p120f * factor);
  }
  static MOELA_DEVICE Vec4 values(uint32_t low, uint32_t high, float factor) {
    return {pair(low, 0, factor), pair(low, 2, factor), pair(high, 0, factor), pair(high, 2, factor)};
  }
};

}  // namespace moela::cuda::sm90
