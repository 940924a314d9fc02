// The softmax of a tile of keys, whose weights the tiles of AMX multiply. Included by isa_amx_bf16.cpp only.
//
// Numerics: weights are e^(score * sm_scale - maximum so far), summed over the keys, ascending, in float32;
// what is multiplied is rounded to bfloat16.
#pragma once

#include "cpu/amx_attend.h"
#include "cpu/exp_log.h"

namespace {

// e^t * 2^kExponent for t <= 0, with a relative error below 4 * 2^-24; NaN stays. Below -200 it is 0.
template <int kExponent>
MOELA_INLINE F exp_nonpositive_of(F t) {
  const F clamped = larger(set1(-200.f), t);
  const F n = _mm512_maskz_roundscale_ps(0xFFFF, mul(clamped, set1(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
  const F r = _mm512_fnmadd_ps(n, set1(-2.12194440e-4f), _mm512_fnmadd_ps(n, set1(355.f / 512.f), clamped));
  F p = set1(kExpTerms[0]);
#pragma GCC unroll 8
  for (int i = 1; i < 8; ++i) p = fma(p, r, set1(kExpTerms[i]));
  return _mm512_maskz_scalef_ps(0xFFFF, p, add(n, set1(kExponent)));
}

// Where the state of sixteen heads or queries is: maxima, sums of weights, and by what sums are scaled again.
struct TileSoftmax {
  float* max;
  float* sum;
  float* rescale;
};

// Scores [key][ld] of sixteen heads or queries to weights, tile after tile of 32 keys. Of `keys` keys the
// first of the sixteen sees `seen`, and each one more; weights of what they do not see are 0.
inline void softmax_to_tiles(const TileSoftmax& s, float sm_scale, const float* scores, int64_t ld,
                             int64_t keys, int64_t seen, int64_t tiles, float* to) {
  const F scale = set1(sm_scale), before = load(s.max);
  const int64_t of_first = seen < 0 ? 0 : seen < keys ? seen : keys;
  const int64_t of_last = seen + kTile - 1 < 0 ? 0 : seen + kTile - 1 < keys ? seen + kTile - 1 : keys;
  // Which of the sixteen see key t, which is not of all.
  const auto lanes = [&](int64_t t) {
    return static_cast<__mmask16>(t < of_last ? 0xFFFF << (t - seen + 1 < 0 ? 0 : t - seen + 1) : 0);
  };
  F max = before;
  for (int64_t t = 0; t < of_first; ++t) max = larger(mul(load(scores + t * ld), scale), max);
  for (int64_t t = of_first; t < of_last; ++t)
    max = _mm512_mask_max_ps(max, lanes(t), mul(load(scores + t * ld), scale), max);

  F sum = zero();
  const I both = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                  21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const auto weight = [&](int64_t t) {
    return exp_nonpositive_of<kWeightExponent>(_mm512_sub_ps(mul(load(scores + t * ld), scale), max));
  };
  const auto to_tile = [&](int64_t first, const auto& weight_of) {
    alignas(64) float pairs[kTileFloats];
    for (int64_t i = 0; i < kTile; ++i) {
      const F x = weight_of(first + 2 * i), y = weight_of(first + 2 * i + 1);
      sum = add(add(sum, x), y);
      _mm512_store_si512(pairs + i * kTile,
                         _mm512_permutexvar_epi16(both, reinterpret_cast<I>(_mm512_cvtne2ps_pbh(y, x))));
    }
    I rows[kTile];
    load_quads(reinterpret_cast<const uint8_t*>(pairs), 64, rows);
#pragma GCC unroll 16
    for (int i = 0; i < kTile; ++i) _mm512_storeu_si512(to + i * kTile, rows[i]);
  };
  for (int64_t tile = 0; tile < tiles; ++tile, to += kTileFloats) {
    const int64_t first = tile * kTileColumns;
    if (first + kTileColumns <= of_first)
      to_tile(first, weight);
    else if (first < of_last)
      to_tile(first, [&](int64_t t) { return _mm512_maskz_mov_ps(lanes(t), weight(t)); });
    else
      std::memset(to, 0, kTileFloats * sizeof(float));
  }
  const F rescale = exp_nonpositive_of<0>(_mm512_sub_ps(before, max));
  store(s.max, max);
  store(s.rescale, rescale);
  store(s.sum, fma(load(s.sum), rescale, mul(sum, set1(1 / kWeightFactor))));
}

}  // namespace
