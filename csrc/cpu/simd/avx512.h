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
// a > b ? a : b, so b beside a NaN. gcc 12 warns inside of the intrinsic without a mask.
MOELA_INLINE F larger(F a, F b) { return _mm512_maskz_max_ps(0xFFFF, a, b); }
// A bit for each lane where x is not below `least`: where it is NaN too.
MOELA_INLINE uint32_t not_below(F x, F least) { return _mm512_cmp_ps_mask(x, least, _CMP_NLT_UQ); }
// Keeps x in a register: see multiply_chain in gemm_panel.h.
MOELA_INLINE void pin(F& x) { asm("" : "+v"(x)); }

MOELA_INLINE I zero_bytes() { return _mm512_setzero_si512(); }
// Per byte max(seen, 2 * code): 0xFE where a NaN code (0x7F or 0xFF) was seen, less elsewhere.
MOELA_INLINE I note_nan(I seen, I codes) { return _mm512_max_epu8(seen, _mm512_add_epi8(codes, codes)); }
// Lane l of the result is all ones where any of its four bytes saw a NaN code.
MOELA_INLINE uint32_t nan_lanes(I seen) {
  const __mmask64 bytes = _mm512_cmpeq_epi8_mask(seen, _mm512_set1_epi8(static_cast<char>(0xFE)));
  return _mm512_test_epi32_mask(_mm512_movm_epi8(bytes), _mm512_set1_epi32(-1));
}

MOELA_INLINE I load_words(const uint8_t* p) { return _mm512_loadu_si512(p); }

// Sixty-four codes of sixteen rows -> q[j]: lane n holds codes 4j .. 4j + 3 of row n. Whole rows of 64 bytes
// are loaded, so that each cache line is touched once: rows are often a power of two apart and fight for the
// same sets.
MOELA_INLINE void load_quads(const uint8_t* p, int64_t ld, I q[kLanes]) {
  I r[16], t[16];
#pragma GCC unroll 16
  for (int n = 0; n < 16; ++n) r[n] = _mm512_loadu_si512(p + n * ld);
#pragma GCC unroll 4
  for (int n = 0; n < 16; n += 4) {
    const I a = _mm512_unpacklo_epi32(r[n], r[n + 1]), b = _mm512_unpackhi_epi32(r[n], r[n + 1]);
    const I c = _mm512_unpacklo_epi32(r[n + 2], r[n + 3]), d = _mm512_unpackhi_epi32(r[n + 2], r[n + 3]);
    t[n] = _mm512_unpacklo_epi64(a, c);  // 128-bit lane l: word 4l of rows n .. n + 3
    t[n + 1] = _mm512_unpackhi_epi64(a, c);
    t[n + 2] = _mm512_unpacklo_epi64(b, d);
    t[n + 3] = _mm512_unpackhi_epi64(b, d);
  }
#pragma GCC unroll 4
  for (int w = 0; w < 4; ++w) {  // word 4l + w of all rows: a 4 x 4 transpose of 128-bit lanes
    const I a = _mm512_shuffle_i32x4(t[w], t[4 + w], 0x44),
            b = _mm512_shuffle_i32x4(t[8 + w], t[12 + w], 0x44);
    const I c = _mm512_shuffle_i32x4(t[w], t[4 + w], 0xEE),
            d = _mm512_shuffle_i32x4(t[8 + w], t[12 + w], 0xEE);
    q[w] = _mm512_shuffle_i32x4(a, b, 0x88);
    q[4 + w] = _mm512_shuffle_i32x4(a, b, 0xDD);
    q[8 + w] = _mm512_shuffle_i32x4(c, d, 0x88);
    q[12 + w] = _mm512_shuffle_i32x4(c, d, 0xDD);
  }
}
MOELA_INLINE I shift_left16(I x, int n) { return _mm512_slli_epi16(x, n); }
MOELA_INLINE I shift_left32(I x, int n) { return _mm512_slli_epi32(x, n); }
MOELA_INLINE I shift_right32(I x, int n) { return _mm512_srli_epi32(x, n); }
MOELA_INLINE I shift_right_signed16(I x, int n) { return _mm512_srai_epi16(x, n); }
MOELA_INLINE F mask_bits(I x, uint32_t bits) {
  return _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(static_cast<int>(bits))));
}
// The float16 in the low half of each lane.
MOELA_INLINE F from_low_halves(I x) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(x)); }
MOELA_INLINE I load_halves(const uint16_t* p) {
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

// out[i] = the sum of the sixteen chains[i], for four of them; the tree of gemm_kernel.h.
MOELA_INLINE void add_chains(const float* chains, float* out) {
  const F x0 = load(chains), x1 = load(chains + 16), x2 = load(chains + 32), x3 = load(chains + 48);
  // Chain c + 8 to chain c: eight chains of two sums in each vector.
  const F x01 = add(_mm512_shuffle_f32x4(x0, x1, 0x44), _mm512_shuffle_f32x4(x0, x1, 0xEE));
  const F x23 = add(_mm512_shuffle_f32x4(x2, x3, 0x44), _mm512_shuffle_f32x4(x2, x3, 0xEE));
  // Chain c + 4 to chain c: a sum's four chains in each quarter.
  F x = add(_mm512_shuffle_f32x4(x01, x23, 0x88), _mm512_shuffle_f32x4(x01, x23, 0xDD));
  x = add(x, _mm512_permute_ps(x, 0x4E));
  x = add(x, _mm512_permute_ps(x, 0xB1));
  _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, x)));
}

}  // namespace
