// Interface of the CPU moe_permute. Definition: python/moela/reference/moe_permute.py.
#pragma once

#include <cstdint>

namespace moela::cpu {

struct MoePermuteParams {
  const void* x;  // [T] rows of row_bytes, ldx_bytes apart
  int64_t row_bytes;
  int64_t ldx_bytes;
  const int32_t* inverse;  // [T, topk]: the row of x_sorted, -1 where there is none
  void* x_sorted;          // [T * topk] rows of row_bytes, contiguous
  int64_t topk;
  int64_t num_rows;  // of x_sorted that tokens have; the rest is zeroed
};

// Writes the rows of tokens [begin, end), and zeros to the rows begin * topk .. end * topk that no token has.
using MoePermute = void (*)(const MoePermuteParams&, int64_t begin, int64_t end);

}  // namespace moela::cpu
