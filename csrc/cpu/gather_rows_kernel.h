// gather_rows on the CPU. Bound: the memory rate of copies.
#pragma once

#include "cpu/gather_rows.h"
#include "cpu/simd.h"

namespace {

void gather_rows(const moela::cpu::GatherRowsParams& p, int64_t begin, int64_t end) {
  const auto* source = static_cast<const char*>(p.source);
  auto* out = static_cast<char*>(p.out);
  for (int64_t i = begin; i < end; ++i) {
    char* to = out + i * p.ld_out;
    const char* from = source + p.rows[i] * p.ld_source;
    if (p.rows[i] < 0)
      __builtin_memset(to, 0, p.row_bytes);
    else if (p.is_streamed)
      stream(to, from, p.row_bytes);
    else
      __builtin_memcpy(to, from, p.row_bytes);
  }
  if (p.is_streamed) end_stream();
}

}  // namespace
