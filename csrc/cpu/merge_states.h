// Interface of the CPU merge_states. Definition: python/moela/reference/merge_states.py.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"

namespace moela::cpu {

struct MergeStatesParams {
  const void* out_a;  // [M, D] of dtype, rows ld_a elements apart
  const void* out_b;  // [M, D] of dtype, rows ld_b elements apart
  Dtype dtype;
  int64_t ld_a;
  int64_t ld_b;
  const float* lse_a;  // [M], stride_a elements apart
  const float* lse_b;  // [M], stride_b elements apart
  int64_t stride_a;
  int64_t stride_b;
  void* out;   // [M, D] of dtype, contiguous
  float* lse;  // [M]
  int64_t D;
};

// Computes rows [begin, end) of out and lse.
using MergeStates = void (*)(const MergeStatesParams&, int64_t begin, int64_t end);

}  // namespace moela::cpu
