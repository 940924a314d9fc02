// AVX512F + BW + DQ + VL: 16 lanes.
#pragma once

#include "cpu/simd/x86.h"

namespace {

constexpr int kLanes = 16;
using F = __m512;
using I = __m512i;

MOELA_INLINE F zero() { return _mm512_setzero_ps(); }
MOELA_INLINE F set1(float x) { return _mm512_set1_ps(x); }
MOELA_INLINE F load(const float* p) { return _mm512_loadu_ps(p); }
MOELA_INLINE void store(float* p, F x) { _mm512_storeu_ps(p, x); }
MOELA_INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
MOELA_INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
MOELA_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
// Keeps x in a register: gcc 12 otherwise folds the load back into every user (31 against 90 GFLOP/s).
MOELA_INLINE void pin(F& x) { asm("" : "+v"(x)); }

MOELA_INLINE I zero_bytes() { return _mm512_setzero_si512(); }
// Per byte max(seen, 2 * code): 0xFE where a NaN code (0x7F or 0xFF) was seen, less elsewhere.
MOELA_INLINE I note_nan(I seen, I codes) { return _mm512_max_epu8(seen, _mm512_add_epi8(codes, codes)); }
// Lane l of the result is all ones where any of its four bytes saw a NaN code.
MOELA_INLINE uint32_t nan_lanes(I seen) {
  const __mmask64 bytes = _mm512_cmpeq_epi8_mask(seen, _mm512_set1_epi8(static_cast<char>(0xFE)));
  return _mm512_test_epi32_mask(_mm512_movm_epi8(bytes), _mm512_set1_epi32(-1));
}

// Rows 4l + i of a [16, 16] byte tile into 128-bit lane l of r[i], then a 4 x 4 transpose of 32-bit words.
MOELA_INLINE I load_lanes(const uint8_t* p, int64_t ld) {
  const auto at = [&](int l) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 4 * l * ld)); };
  const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(at(0)), at(1), 1);
  const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(at(2)), at(3), 1);
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}
// q[j]: lane n holds the four codes k = 4j .. 4j + 3 of row n.
MOELA_INLINE void load_quads(const uint8_t* p, int64_t ld, I q[4]) {
  const I r0 = load_lanes(p, ld), r1 = load_lanes(p + ld, ld);
  const I r2 = load_lanes(p + 2 * ld, ld), r3 = load_lanes(p + 3 * ld, ld);
  const I a = _mm512_unpacklo_epi32(r0, r1), b = _mm512_unpackhi_epi32(r0, r1);
  const I c = _mm512_unpacklo_epi32(r2, r3), d = _mm512_unpackhi_epi32(r2, r3);
  q[0] = _mm512_unpacklo_epi64(a, c);
  q[1] = _mm512_unpackhi_epi64(a, c);
  q[2] = _mm512_unpacklo_epi64(b, d);
  q[3] = _mm512_unpackhi_epi64(b, d);
}
MOELA_INLINE I shift_left16(I x, int n) { return _mm512_slli_epi16(x, n); }
MOELA_INLINE I shift_left32(I x, int n) { return _mm512_slli_epi32(x, n); }
MOELA_INLINE I shift_right_signed16(I x, int n) { return _mm512_srai_epi16(x, n); }
MOELA_INLINE F mask_bits(I x, uint32_t bits) {
  return _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(static_cast<int>(bits))));
}

}  // namespace
