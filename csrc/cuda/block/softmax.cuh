// The softmax of rows of scores that come a tile at a time, and its logarithm.
#pragma once

#include <cmath>

#include "cuda/hopper/hopper.h"

namespace moela::cuda::sm90 {

constexpr float kInfinity = __builtin_huge_valf(), kNan = __builtin_nanf("");
constexpr float kLog2E = 0x1.715476p0f, kLn2 = 0x1.62e430p-1f;

// The largest, and the sum, over the four lanes that hold a row of an accumulator.
MOELA_DEVICE float quad_max(float x) {
  x = fmaxf(x, shfl_xor(x, 1));
  return fmaxf(x, shfl_xor(x, 2));
}
MOELA_DEVICE float quad_sum(float x) {
  x += shfl_xor(x, 1);
  return x + shfl_xor(x, 2);
}

// ln x of a positive normal number; NaN stays. x = 2^e m with m in [2^-1/2, 2^1/2): ln m = 2 artanh((m - 1) /
// (m + 1)), whose series ends where its next term is below 2^-31.
MOELA_DEVICE float natural_log(float x) {
  constexpr uint32_t kHalfRoot = 0x3F3504F3;  // 2^-1/2
  const int e = static_cast<int>(bits_of(x) - kHalfRoot) >> 23;
  const float m = float_of(bits_of(x) - (static_cast<uint32_t>(e) << 23));
  const float t = div_rn(m - 1.f, m + 1.f), t2 = t * t;
  const float series = 1.f + t2 * (1.f / 3 + t2 * (1.f / 5 + t2 * (1.f / 7 + t2 * (1.f / 9))));
  return static_cast<float>(e) * kLn2 + 2.f * t * series + (x - x);
}

// Of a row whose weights, relative to 2^max, have this sum: its inverse, or 0 if the row has seen no key.
MOELA_DEVICE float softmax_inverse(float sum) { return sum == 0.f ? 0.f : div_rn(1.f, sum); }
// ln of the sum of e^score.
MOELA_DEVICE float softmax_lse(float max, float sum) {
  return sum == 0.f ? -kInfinity : max * kLn2 + natural_log(sum);
}

// Of a thread's two rows r of an accumulator, those of registers i with i / 2 % 2 == r. Scores are those of
// the softmax times log2(e); -Inf is a key that the row does not see.
template <int kKeys>
struct Softmax {
  float max[2] = {-kInfinity, -kInfinity};
  float sum[2] = {0.f, 0.f};  // of this thread's columns, relative to 2^max

  // Replaces scores by 2^(score - max) with the new maximum. What has been summed up relative to the old one
  // is to be multiplied with rescale. A maximum of -Inf: nothing seen yet, all weights are 0.
  MOELA_DEVICE void weigh(Acc<kKeys>& scores, float (&rescale)[2]) {
    float base[2];
    MOELA_UNROLL
    for (int r = 0; r < 2; ++r) {
      float largest = max[r];
      MOELA_UNROLL
      for (int i = 0; i < kKeys / 2; ++i)
        if (i / 2 % 2 == r) largest = fmaxf(largest, scores.get(i));
      largest = quad_max(largest);
      base[r] = largest == -kInfinity ? 0.f : largest;
      rescale[r] = ex2_approx(max[r] - base[r]);
      max[r] = largest;
      sum[r] *= rescale[r];
    }
    MOELA_UNROLL
    for (int i = 0; i < kKeys / 2; ++i) {
      const int r = i / 2 % 2;
      const float weight = ex2_approx(scores.get(i) - base[r]);
      scores.set(i, weight);
      sum[r] += weight;
    }
  }

  // Of another thread that has weighed a tile in this one's place; rescale as in weigh().
  MOELA_DEVICE void follow(const Vec4& state, float (&rescale)[2]) {
    const float new_max[2] = {float_of(state.x), float_of(state.y)};
    MOELA_UNROLL
    for (int r = 0; r < 2; ++r) {
      rescale[r] = ex2_approx(max[r] - (new_max[r] == -kInfinity ? 0.f : new_max[r]));
      max[r] = new_max[r];
    }
    sum[0] = float_of(state.z);
    sum[1] = float_of(state.w);
  }
  MOELA_DEVICE Vec4 state() const {
    return {bits_of(max[0]), bits_of(max[1]), bits_of(sum[0]), bits_of(sum[1])};
  }

  // After the last tile: the sums of whole rows.
  MOELA_DEVICE void finish() {
    sum[0] = quad_sum(sum[0]);
    sum[1] = quad_sum(sum[1]);
  }
  MOELA_DEVICE float inverse(int r) const { return softmax_inverse(sum[r]); }
  MOELA_DEVICE float lse(int r) const { return softmax_lse(max[r], sum[r]); }
};

}  // namespace moela::cuda::sm90
