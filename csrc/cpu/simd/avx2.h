// AVX2 + FMA + F16C: 8 lanes. The comments in avx512.h hold here too.
#pragma once

#include "cpu/simd/x86.h"

namespace {

constexpr int kLanes = 8;
using F = __m256;
using I = __m256i;

MOELA_INLINE F zero() { return _mm256_setzero_ps(); }
MOELA_INLINE F set1(float x) { return _mm256_set1_ps(x); }
MOELA_INLINE F load(const float* p) { return _mm256_loadu_ps(p); }
MOELA_INLINE void store(float* p, F x) { _mm256_storeu_ps(p, x); }
MOELA_INLINE F add(F a, F b) { return _mm256_add_ps(a, b); }
MOELA_INLINE F mul(F a, F b) { return _mm256_mul_ps(a, b); }
MOELA_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
MOELA_INLINE F larger(F a, F b) { return _mm256_max_ps(a, b); }
MOELA_INLINE uint32_t not_below(F x, F least) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(x, least, _CMP_NLT_UQ)));
}
// Keeps x in a register: see multiply_chain in gemm_panel.h.
MOELA_INLINE void pin(F& x) { asm("" : "+x"(x)); }

MOELA_INLINE I zero_bytes() { return _mm256_setzero_si256(); }
MOELA_INLINE I note_nan(I seen, I codes) { return _mm256_max_epu8(seen, _mm256_add_epi8(codes, codes)); }
MOELA_INLINE uint32_t nan_lanes(I seen) {
  const I bytes = _mm256_cmpeq_epi8(seen, _mm256_set1_epi8(static_cast<char>(0xFE)));
  const I clean = _mm256_cmpeq_epi32(bytes, _mm256_setzero_si256());
  return 0xFFu & ~static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(clean)));
}

MOELA_INLINE I load_words(const uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}

MOELA_INLINE void load_quads(const uint8_t* p, int64_t ld, I q[kLanes]) {
  I r[8], t[8];
#pragma GCC unroll 8
  for (int n = 0; n < 8; ++n) r[n] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + n * ld));
#pragma GCC unroll 2
  for (int n = 0; n < 8; n += 4) {
    const I a = _mm256_unpacklo_epi32(r[n], r[n + 1]), b = _mm256_unpackhi_epi32(r[n], r[n + 1]);
    const I c = _mm256_unpacklo_epi32(r[n + 2], r[n + 3]), d = _mm256_unpackhi_epi32(r[n + 2], r[n + 3]);
    t[n] = _mm256_unpacklo_epi64(a, c);  // 128-bit lane l: word 4l of rows n .. n + 3
    t[n + 1] = _mm256_unpackhi_epi64(a, c);
    t[n + 2] = _mm256_unpacklo_epi64(b, d);
    t[n + 3] = _mm256_unpackhi_epi64(b, d);
  }
#pragma GCC unroll 4
  for (int w = 0; w < 4; ++w) {
    q[w] = _mm256_permute2x128_si256(t[w], t[4 + w], 0x20);
    q[4 + w] = _mm256_permute2x128_si256(t[w], t[4 + w], 0x31);
  }
}
MOELA_INLINE I shift_left16(I x, int n) { return _mm256_slli_epi16(x, n); }
MOELA_INLINE I shift_left32(I x, int n) { return _mm256_slli_epi32(x, n); }
MOELA_INLINE I shift_right32(I x, int n) { return _mm256_srli_epi32(x, n); }
MOELA_INLINE I shift_right_signed16(I x, int n) { return _mm256_srai_epi16(x, n); }
MOELA_INLINE F mask_bits(I x, uint32_t bits) {
  return _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(static_cast<int>(bits))));
}
MOELA_INLINE F from_low_halves(I x) {
  const I low = _mm256_and_si256(x, _mm256_set1_epi32(0xFFFF));
  const I packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, low), 0x08);
  return _mm256_cvtph_ps(_mm256_castsi256_si128(packed));
}
MOELA_INLINE I load_halves(const uint16_t* p) {
  return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

MOELA_INLINE void add_chains(const float* chains, float* out) {
  __m128 x[4];  // four chains of each sum
  for (int i = 0; i < 4; ++i) {
    const F eight = add(load(chains + 16 * i), load(chains + 16 * i + 8));
    x[i] = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  }
  _MM_TRANSPOSE4_PS(x[0], x[1], x[2], x[3]);
  _mm_storeu_ps(out, _mm_add_ps(_mm_add_ps(x[0], x[2]), _mm_add_ps(x[1], x[3])));
}

}  // namespace
