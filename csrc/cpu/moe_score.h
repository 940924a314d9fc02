// Scores of experts: the sequences of float32 operations that python/moela/reference/moe_topk.py defines, in
// loops that the compiler vectorizes. No library function, no fused multiply-add.
#pragma once

#include "cpu/exp_log.h"
#include "cpu/moe_topk.h"
#include "cpu/simd.h"

namespace {

// All ones where x is negative, -0 too.
inline uint32_t sign_mask(float x) { return static_cast<uint32_t>(static_cast<int32_t>(bits_of(x)) >> 31); }

// score[i] of x[i], of which none is NaN and the largest is `most`: for softmax a finite one.
inline void scores_of(const float* x, int64_t E, moela::cpu::Scoring scoring, float most, float* score) {
  switch (scoring) {
    case moela::cpu::Scoring::kSoftmax: {
      for (int64_t i = 0; i < E; ++i) score[i] = exp_nonpositive(x[i] - most);
      int64_t total = 0;  // in units of 2^-40: exact, so the order of this sum is the compiler's
      for (int64_t i = 0; i < E; ++i) total += static_cast<int64_t>(score[i] * 0x1p40f);
      const float sum = static_cast<float>(total) * 0x1p-40f;
      for (int64_t i = 0; i < E; ++i) score[i] /= sum;
      return;
    }
    case moela::cpu::Scoring::kSigmoid:
      for (int64_t i = 0; i < E; ++i) {
        const float e = exp_nonpositive(-absolute(x[i]));
        const uint32_t is_negative = sign_mask(x[i]);
        score[i] = float_of((bits_of(e) & is_negative) | (bits_of(1.f) & ~is_negative)) / (e + 1.f);
      }
      return;
    case moela::cpu::Scoring::kSqrtSoftplus:
      for (int64_t i = 0; i < E; ++i) {
        const float e = exp_nonpositive(-absolute(x[i]));
        score[i] = __builtin_sqrtf(float_of(bits_of(x[i]) & ~sign_mask(x[i])) + log1p_of_unit(e));
      }
      return;
  }
}

}  // namespace
