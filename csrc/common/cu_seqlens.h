// Where sequences of any length begin among the rows of a tensor, in the words of python/moela/ops/_check.py.
#pragma once

#include <string>

#include "common/expert_rows.h"

namespace moela {

// [B + 1] int32 offsets from 0 to `rows`; B + 1 is that of `like`.
inline void check_cu_seqlens(const char* op, const char* arg, const Tensor& offsets, const Tensor& like,
                             int64_t rows, const char* owner) {
  check_dim(op, arg, offsets, 1);
  const int64_t num_bounds = like.size(0);
  if (num_bounds == 0) fail(op, arg, "at least one element", 0);
  check_int32s(op, arg, offsets, num_bounds, owner);
  const int32_t* bounds = int32s(offsets);
  const auto refuse = [&](const std::string& got) {
    fail(op, arg, "a non-decreasing sequence from 0 to " + std::to_string(rows), got);
  };
  if (bounds[0] != 0) refuse(std::to_string(bounds[0]) + " at the start");
  for (int64_t b = 0; b + 1 < num_bounds; ++b)
    if (bounds[b] > bounds[b + 1])
      refuse(std::to_string(bounds[b]) + " before " + std::to_string(bounds[b + 1]) + " at sequence " +
             std::to_string(b));
  if (bounds[num_bounds - 1] != rows) refuse(std::to_string(bounds[num_bounds - 1]) + " at the end");
}

}  // namespace moela
