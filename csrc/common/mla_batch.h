// What a batch of latent attention is described by, in the words of python/moela/ops/_check.py: lengths and
// pages, and a schedule.
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "common/expert_rows.h"
#include "plan/mla_schedule.h"

namespace moela {

inline std::string at_request(const std::string& what, int64_t b) {
  return what + " at request " + std::to_string(b);
}

inline void check_block_table(const char* op, const Tensor& block_table, const char* owner) {
  check_dim(op, "block_table", block_table, 2);
  check_dtype(op, "block_table", block_table.scalar_type(), {ScalarType::Int});
  check_last_dim_contiguous(op, "block_table", block_table);
  check_cpu(op, "block_table", block_table, owner);
}

// `seqlens`: of B requests beside q, at most `most`, in the pages that block_table names, or in those of a
// dense cache.
inline void check_seqlens(const char* op, const Tensor& seqlens, int64_t B, const Tensor& cache,
                          const std::optional<Tensor>& block_table, int64_t most = INT64_MAX) {
  check_int32s(op, "seqlens", seqlens, B, "q");
  const int64_t page_size = cache.size(1);
  const int64_t capacity = std::min(most, page_size * (block_table ? block_table->size(1) : 1));
  for (int64_t b = 0; b < B; ++b) {
    const int64_t tokens = int32s(seqlens)[b];
    if (tokens < 0 || tokens > capacity)
      fail(op, "seqlens", "lengths within [0, " + std::to_string(capacity) + "]",
           at_request(std::to_string(tokens), b));
    if (!block_table || tokens == 0) continue;
    const int32_t* pages = int32s(*block_table) + b * block_table->stride(0);
    for (int64_t block = 0; block < (tokens + page_size - 1) / page_size; ++block)
      if (pages[block] < 0 || pages[block] >= cache.size(0))
        fail(op, "block_table", "pages within [0, " + std::to_string(cache.size(0) - 1) + "]",
             at_request(std::to_string(pages[block]), b) + ", block " + std::to_string(block));
  }
}

// `schedule`: what mla_schedule makes of seqlens and `rows`, for any number of parts.
inline void check_schedule(const char* op, const Tensor& schedule, const Tensor& seqlens, int64_t rows,
                           bool batch_invariant) {
  const char* arg = "schedule";
  const int64_t B = seqlens.size(0);
  check_dim(op, arg, schedule, 2);
  check_dtype(op, arg, schedule.scalar_type(), {ScalarType::Int});
  if (schedule.size(1) != plan::kMlaScheduleColumns || schedule.size(0) < plan::mla_schedule_rows(B, 1))
    fail(op, arg, "shape [" + std::to_string(B) + " + num_parts + 3, 4]", shape_text(schedule));
  check_last_dim_contiguous(op, arg, schedule);
  check_cpu(op, arg, schedule, "q");
  const int64_t num_parts = schedule.size(0) - plan::mla_schedule_rows(B, 0);
  const auto row = [&](int64_t i) { return int32s(schedule) + i * schedule.stride(0); };
  const std::vector<int64_t> wanted = {B, num_parts, rows, batch_invariant};
  const std::vector<int64_t> got(row(0), row(0) + plan::kMlaScheduleColumns);
  if (got != wanted)
    fail(op, arg, "one made for (B, num_parts, rows, batch_invariant) = " + shape_text(wanted),
         shape_text(got));
  for (int64_t b = 0; b < B; ++b) {
    const int32_t made_for = row(num_parts + 2 + b)[1], tokens = int32s(seqlens)[b];
    if (made_for != tokens)
      fail(op, arg, "one made for these seqlens",
           at_request("one of " + std::to_string(made_for) + " tokens, not " + std::to_string(tokens) + ",",
                      b));
  }
}

}  // namespace moela
