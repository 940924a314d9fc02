// Exchange in a warp, matrices, conversions. See cuda/hopper/ptx/warp.h, matrix.h, convert.h.
#pragma once

#include "cuda/hopper/types.h"
#include "emu/convert.h"
#include "emu/hopper_memory.h"
#include "emu/layout.h"
#include "emu/runtime.h"

namespace moela::cuda::sm90 {

inline bool elect_one(Where where = Where::current()) {
  emu::warp_exchange(emu::Collective::kElect, nullptr, 0, where);
  return lane() == 0;
}

template <class T>
T shfl(T value, int source_lane, Where where = Where::current()) {
  const auto word = bits_as<uint32_t>(value);
  return bits_as<T>(emu::warp_exchange(emu::Collective::kShuffle, &word, 1, where).of[source_lane & 31][0]);
}

template <class T>
T shfl_xor(T value, int mask, Where where = Where::current()) {
  return shfl(value, lane() ^ (mask & 31), where);
}

inline uint32_t redux_max(uint32_t x, Where where = Where::current()) {
  const auto words = emu::warp_exchange(emu::Collective::kReduce, &x, 1, where);
  uint32_t max = 0;
  for (const auto& of_lane : words.of) max = std::max(max, of_lane[0]);
  return max;
}

inline uint32_t redux_add(uint32_t x, Where where = Where::current()) {
  const auto words = emu::warp_exchange(emu::Collective::kReduce, &x, 1, where);
  uint32_t sum = 0;
  for (const auto& of_lane : words.of) sum += of_lane[0];
  return sum;
}

inline uint32_t vote_ballot(bool predicate, Where where = Where::current()) {
  const uint32_t word = predicate;
  const auto words = emu::warp_exchange(emu::Collective::kVote, &word, 1, where);
  uint32_t lanes = 0;
  for (int l = 0; l < 32; ++l) lanes |= words.of[l][0] << l;
  return lanes;
}

template <int kCount, bool kTranspose = false>
void ldmatrix(SmemAddr row, uint32_t (&r)[kCount], Where where = Where::current()) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4, "one, two or four matrices");
  const auto rows = emu::warp_exchange(emu::Collective::kLoadMatrix, &row, 1, where);
  for (int j = 0; j < kCount; ++j) {
    uint16_t halves[2];
    for (int h = 0; h < 2; ++h) {
      const emu::RowColumn at = emu::matrix_element(lane(), h, kTranspose);
      const SmemAddr address = rows.of[j * 8 + at.row][0];
      if (address % 16) emu::fail("alignment", "ldmatrix: a row is not aligned to 16 bytes", where);
      halves[h] = lds<uint16_t>(address + static_cast<SmemAddr>(at.column * 2), where);
    }
    memcpy(&r[j], halves, sizeof halves);
  }
}

template <int kCount, bool kTranspose = false>
void stmatrix(SmemAddr row, const uint32_t (&r)[kCount], Where where = Where::current()) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4, "one, two or four matrices");
  uint32_t words[kCount + 1] = {row};
  for (int j = 0; j < kCount; ++j) words[j + 1] = r[j];
  const auto all = emu::warp_exchange(emu::Collective::kStoreMatrix, words, kCount + 1, where);
  for (int j = 0; j < kCount; ++j) {
    for (int h = 0; h < 2; ++h) {
      const emu::RowColumn at = emu::matrix_element(lane(), h, kTranspose);
      const SmemAddr address = all.of[j * 8 + at.row][0];
      if (address % 16) emu::fail("alignment", "stmatrix: a row is not aligned to 16 bytes", where);
      sts(address + static_cast<SmemAddr>(at.column * 2), static_cast<uint16_t>(r[j] >> 16 * h), where);
    }
  }
}

inline uint16_t cvt_e4m3x2(float low, float high) {
  return static_cast<uint16_t>(emu::e4m3_of_float(low) | emu::e4m3_of_float(high) << 8);
}
inline uint32_t cvt_f16x2_of_e4m3x2(uint16_t codes) {
  const uint32_t low = emu::f16_of_float(emu::float_of_e4m3(static_cast<uint8_t>(codes)));
  return low | static_cast<uint32_t>(emu::f16_of_float(emu::float_of_e4m3(static_cast<uint8_t>(codes >> 8))))
                   << 16;
}
inline uint16_t cvt_e5m2x2(float low, float high) {
  return static_cast<uint16_t>(emu::e5m2_of_float(low) | emu::e5m2_of_float(high) << 8);
}
// A code is the upper byte of the half.
inline uint32_t cvt_f16x2_of_e5m2x2(uint16_t codes) {
  return (codes & 0xFFu) << 8 | static_cast<uint32_t>(codes >> 8) << 24;
}
inline uint32_t cvt_bf16x2(float low, float high) {
  return emu::bf16_of_float(low) | static_cast<uint32_t>(emu::bf16_of_float(high)) << 16;
}
inline uint32_t cvt_f16x2(float low, float high) {
  return emu::f16_of_float(low) | static_cast<uint32_t>(emu::f16_of_float(high)) << 16;
}
inline float cvt_f32_of_f16(uint16_t half) { return emu::float_of_f16(half); }
inline float cvt_f32_of_bf16(uint16_t bits) { return emu::float_of_bf16(bits); }
inline float div_rn(float x, float y) { return x / y; }
inline float ex2_approx(float x) { return emu::ex2_approx(x); }

}  // namespace moela::cuda::sm90
