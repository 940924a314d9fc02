// mla_norm_rope_cache_write on the CPU, in the steps of its definition. Bound: the memory rate; the second
// pass over a latent reads it from L1.
#pragma once

#include "cpu/mla_norm_rope_cache_write.h"
#include "cpu/mla_row.h"

namespace {

using moela::cpu::MlaNormRopeCacheWriteParams;

// By halves, with zeros after the n-th.
inline float sum_of_squares(const float* x, int64_t n) {
  alignas(64) float s[kMlaGroup] = {};
  for (int64_t i = 0; i < n; ++i) s[i] = x[i] * x[i];
#pragma GCC unroll 7
  for (int64_t half = kMlaGroup / 2; half > 0; half /= 2)
    for (int64_t i = 0; i < half; ++i) s[i] += s[i + half];
  return s[0];
}

// x as a tensor of dtype would hold it.
inline void round_floats(float* x, int64_t n, Dtype dtype) {
  if (dtype == Dtype::kFloat32) return;
  uint16_t rounded[kMlaGroup];
  store_floats(x, n, dtype, rounded, 0);
  load_floats(rounded, dtype, 0, n, x);
}

inline void write_normalized(const MlaNormRopeCacheWriteParams& p, int64_t token, uint8_t* row) {
  alignas(64) float x[kMlaGroup], weight[kMlaGroup];
  float total = 0.f;  // of squares: adding the first to it is exact
  for_pieces(p.cache.latent, kMlaGroup, [&](int64_t k, int64_t n) {
    load_floats(p.kv, p.dtype, token * p.ld + k, n, x);
    total += sum_of_squares(x, n);
  });
  const float rms_inverse = 1.f / __builtin_sqrtf(total / static_cast<float>(p.cache.latent) + p.eps);
  for_pieces(p.cache.latent, kMlaGroup, [&](int64_t k, int64_t n) {
    load_floats(p.kv, p.dtype, token * p.ld + k, n, x);
    load_floats(p.weight, p.weight_dtype, k, n, weight);
    for (int64_t i = 0; i < n; ++i) x[i] = x[i] * rms_inverse * weight[i];
    round_floats(x, n, p.dtype);
    write_latent(p.cache, row, k, n, x, p.ue8m0);
  });
}

// Pairs are columns (2 i, 2 i + 1), or (i, i + rope / 2).
inline void write_rotated(const MlaNormRopeCacheWriteParams& p, int64_t token, uint8_t* row) {
  constexpr int64_t kPairs = kMlaGroup / 2;
  const int64_t at = token * p.ld + p.cache.latent, num_pairs = p.cache.rope / 2;
  alignas(64) float x[kMlaGroup], cos[kPairs], sin[kPairs];
  for_pieces(num_pairs, kPairs, [&](int64_t i, int64_t n) {
    load_floats(p.cos, p.angle_dtype, token * p.ld_cos + i, n, cos);
    load_floats(p.sin, p.angle_dtype, token * p.ld_sin + i, n, sin);
    const auto rotate = [&](float* first, float* second, int64_t step) {
      for (int64_t pair = 0; pair < n; ++pair) {
        const float a = first[pair * step], b = second[pair * step];
        first[pair * step] = a * cos[pair] - b * sin[pair];
        second[pair * step] = b * cos[pair] + a * sin[pair];
      }
    };
    if (p.interleaved) {
      load_floats(p.kv, p.dtype, at + 2 * i, 2 * n, x);
      rotate(x, x + 1, 2);
      round_floats(x, 2 * n, p.dtype);
      write_rope(p.cache, row, 2 * i, 2 * n, x);
      return;
    }
    for (int half = 0; half < 2; ++half)
      load_floats(p.kv, p.dtype, at + half * num_pairs + i, n, x + half * kPairs);
    rotate(x, x + kPairs, 1);
    for (int half = 0; half < 2; ++half) {
      round_floats(x + half * kPairs, n, p.dtype);
      write_rope(p.cache, row, half * num_pairs + i, n, x + half * kPairs);
    }
  });
}

void mla_norm_rope_cache_write(const MlaNormRopeCacheWriteParams& p, int64_t begin, int64_t end) {
  [[maybe_unused]] const ExactSubnormals guard;
  for (int64_t token = begin; token < end; ++token) {
    uint8_t* row = row_of(p.cache, p.slots, token);
    if (row == nullptr) continue;
    write_normalized(p, token, row);
    write_rotated(p, token, row);
  }
}

}  // namespace
