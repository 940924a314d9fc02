// moe_permute on the CPU: the copies. Bound: the memory rate of writes.
#pragma once

#include "cpu/moe_permute.h"
#include "cpu/simd.h"

namespace {

// From this size on the rows of x_sorted would displace what is in the caches, and each of their lines be
// read before it is written. Below, whoever multiplies them finds them in the cache.
constexpr int64_t kStreamBytes = 8 << 20;

void moe_permute(const moela::cpu::MoePermuteParams& p, int64_t begin, int64_t end) {
  auto* x_sorted = static_cast<char*>(p.x_sorted);
  const bool is_large = p.num_rows * p.row_bytes >= kStreamBytes;
  for (int64_t t = begin; t < end; ++t) {
    const char* from = static_cast<const char*>(p.x) + t * p.ldx_bytes;
    for (int64_t pair = t * p.topk; pair < (t + 1) * p.topk; ++pair) {
      char* to = x_sorted + p.inverse[pair] * p.row_bytes;
      if (p.inverse[pair] >= 0 && is_large) stream(to, from, p.row_bytes);
      if (p.inverse[pair] >= 0 && !is_large) __builtin_memcpy(to, from, p.row_bytes);
      if (pair >= p.num_rows) __builtin_memset(x_sorted + pair * p.row_bytes, 0, p.row_bytes);
    }
  }
  if (is_large) end_stream();
}

}  // namespace
