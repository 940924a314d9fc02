// The same operations on four lanes in plain C++: runs anywhere, and is the oracle of the other three.
#pragma once

#include "cpu/convert.h"
#if defined(__SSE2__)
#include "cpu/simd/x86.h"
#endif

namespace {

constexpr int kLanes = 4;
struct F {
  float v[kLanes];
};
struct I {
  uint32_t v[kLanes];
};

#if !defined(__SSE2__)
struct ExactSubnormals {};
MOELA_INLINE void stream(char* to, const char* from, int64_t n) { __builtin_memcpy(to, from, n); }
MOELA_INLINE void end_stream() {}
MOELA_INLINE void prefetch_l1(const void* p) { __builtin_prefetch(p, 0, 3); }
MOELA_INLINE void prefetch_l2(const void* p) { __builtin_prefetch(p, 0, 2); }
#endif

template <class Op>
MOELA_INLINE F each(Op op) {
  return {op(0), op(1), op(2), op(3)};
}
template <class Op>
MOELA_INLINE I each_bits(Op op) {
  return {op(0), op(1), op(2), op(3)};
}

MOELA_INLINE F zero() { return {}; }
MOELA_INLINE F set1(float x) { return {x, x, x, x}; }
MOELA_INLINE F load(const float* p) { return {p[0], p[1], p[2], p[3]}; }
MOELA_INLINE void store(float* p, F x) { std::memcpy(p, x.v, sizeof x.v); }
MOELA_INLINE F add(F a, F b) {
  return each([&](int l) { return a.v[l] + b.v[l]; });
}
MOELA_INLINE F mul(F a, F b) {
  return each([&](int l) { return a.v[l] * b.v[l]; });
}
MOELA_INLINE F fma(F a, F b, F c) {
  return each([&](int l) { return __builtin_fmaf(a.v[l], b.v[l], c.v[l]); });
}
MOELA_INLINE F larger(F a, F b) {
  return each([&](int l) { return a.v[l] > b.v[l] ? a.v[l] : b.v[l]; });
}
MOELA_INLINE uint32_t not_below(F x, F least) {
  uint32_t lanes = 0;
  for (int l = 0; l < kLanes; ++l) lanes |= uint32_t{!(x.v[l] < least.v[l])} << l;
  return lanes;
}
MOELA_INLINE void pin(F&) {}

MOELA_INLINE I zero_bytes() { return {}; }
MOELA_INLINE I note_nan(I seen, I codes) {
  return each_bits([&](int l) {
    uint32_t out = 0;
    for (int byte = 0; byte < 32; byte += 8) {
      const uint32_t twice = (codes.v[l] >> byte << 1) & 0xFF, old = (seen.v[l] >> byte) & 0xFF;
      out |= (twice > old ? twice : old) << byte;
    }
    return out;
  });
}
MOELA_INLINE uint32_t nan_lanes(I seen) {
  uint32_t lanes = 0;
  for (int l = 0; l < kLanes; ++l)
    for (int byte = 0; byte < 32; byte += 8) lanes |= uint32_t{((seen.v[l] >> byte) & 0xFF) == 0xFE} << l;
  return lanes;
}

MOELA_INLINE I load_words(const uint8_t* p) {
  I q;
  for (int l = 0; l < kLanes; ++l) {
    const uint8_t* c = p + 4 * l;
    q.v[l] = c[0] | c[1] << 8 | c[2] << 16 | static_cast<uint32_t>(c[3]) << 24;
  }
  return q;
}
MOELA_INLINE void load_quads(const uint8_t* p, int64_t ld, I q[4]) {
  for (int row = 0; row < 4; ++row)
    for (int j = 0; j < 4; ++j) {
      const uint8_t* c = p + row * ld + 4 * j;
      q[j].v[row] = c[0] | c[1] << 8 | c[2] << 16 | static_cast<uint32_t>(c[3]) << 24;
    }
}
MOELA_INLINE I shift_left16(I x, int n) {
  return each_bits(
      [&](int l) { return ((x.v[l] & 0xFFFF) << n & 0xFFFF) | ((x.v[l] >> 16) << n & 0xFFFF) << 16; });
}
MOELA_INLINE I shift_left32(I x, int n) {
  return each_bits([&](int l) { return x.v[l] << n; });
}
MOELA_INLINE I shift_right32(I x, int n) {
  return each_bits([&](int l) { return x.v[l] >> n; });
}
MOELA_INLINE I shift_right_signed16(I x, int n) {
  const auto shift = [n](uint32_t half) {
    return static_cast<uint16_t>(static_cast<int16_t>(static_cast<uint16_t>(half)) >> n);
  };
  return each_bits([&](int l) {
    return static_cast<uint32_t>(shift(x.v[l] & 0xFFFF)) | static_cast<uint32_t>(shift(x.v[l] >> 16)) << 16;
  });
}
MOELA_INLINE F mask_bits(I x, uint32_t bits) {
  return each([&](int l) { return __builtin_bit_cast(float, x.v[l] & bits); });
}
MOELA_INLINE F from_low_halves(I x) {
  return each([&](int l) { return from_float16(static_cast<uint16_t>(x.v[l])); });
}
MOELA_INLINE I load_halves(const uint16_t* p) {
  return each_bits([&](int l) { return uint32_t{p[l]}; });
}

MOELA_INLINE void add_chains(const float* chains, float* out) {
  for (int i = 0; i < 4; ++i, chains += 16) {
    float x[16];
    std::memcpy(x, chains, sizeof x);
    for (int step = 8; step > 0; step /= 2)
      for (int c = 0; c < step; ++c) x[c] += x[c + step];
    out[i] = x[0];
  }
}

}  // namespace
