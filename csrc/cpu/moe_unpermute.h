// Interface of the CPU moe_unpermute. Definition: python/moela/reference/moe_unpermute.py.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"

namespace moela::cpu {

struct MoeUnpermuteParams {
  const void* y;  // [R, H] of dtype, rows ldy elements apart
  Dtype dtype;
  int64_t ldy;
  const float* weights;  // [T, topk], rows ldw elements apart, or nullptr: all 1
  int64_t ldw;
  const int32_t* inverse;  // [T, topk], rows ldi elements apart
  int64_t ldi;
  void* out;  // [T, H] of dtype, contiguous
  int64_t R;
  int64_t H;
  int64_t topk;
};

// Computes rows [begin, end) of out.
using MoeUnpermute = void (*)(const MoeUnpermuteParams&, int64_t begin, int64_t end);

}  // namespace moela::cpu
