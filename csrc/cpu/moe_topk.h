// Interface of the CPU moe_topk. Definition: python/moela/reference/moe_topk.py.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"

namespace moela::cpu {

enum class Scoring { kSoftmax, kSigmoid, kSqrtSoftplus };
enum class GroupScore { kMax, kTop2Sum };

struct MoeTopkParams {
  const void* logits;  // [T, E] of dtype, rows ld elements apart
  Dtype dtype;
  int64_t ld;
  const float* bias;  // [E], or nullptr
  float* weights;     // [T, topk], contiguous
  int32_t* ids;       // [T, topk], contiguous
  int64_t T;
  int64_t E;
  int64_t topk;
  Scoring scoring;
  int64_t num_groups;
  int64_t topk_groups;
  GroupScore group_score;
  bool renormalize;
  float scaling;
};

// Floats of memory that a thread works in.
constexpr int64_t moe_topk_scratch(int64_t E) { return 4 * E + 16; }

// Computes rows [begin, end).
using MoeTopk = void (*)(const MoeTopkParams&, float* scratch, int64_t begin, int64_t end);

}  // namespace moela::cpu
