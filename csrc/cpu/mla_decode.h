// What of attention on the CPU is mla_decode's: a query's keys are the first ones of its request's pages.
// Definition: python/moela/reference/mla_decode.py.
#pragma once

#include "cpu/mla_attend.h"

namespace moela::cpu {

// The first `count` keys of request `b`; its pages are row b of block_table, rows stride_tb apart.
inline MlaKeys keys_of_pages(const int32_t* block_table, int64_t stride_tb, int64_t b, int64_t count) {
  return {.count = count, .pages = block_table + b * stride_tb, .slots = nullptr};
}

}  // namespace moela::cpu
