// Which rows belong to which expert: the checks of expert_offsets and expert_counts, in the words of
// python/moela/ops/_check.py, and the rows that belong to none.
#pragma once

#include <cstring>

#include "common/tensor.h"

namespace moela {

inline void check_int32s(const char* op, const char* arg, const Tensor& t, int64_t size, const char* owner) {
  check_dtype(op, arg, t.scalar_type(), {ScalarType::Int});
  check_shape(op, arg, t, {size});
  check_last_dim_contiguous(op, arg, t);
  check_cpu(op, arg, t, owner);
}

inline const int32_t* int32s(const Tensor& t) { return static_cast<const int32_t*>(t.const_data_ptr()); }

// `owner`: the argument whose `num_rows` rows they divide.
inline void check_offsets(const char* op, const Tensor& expert_offsets, int64_t num_experts, int64_t num_rows,
                          const char* owner) {
  const char* arg = "expert_offsets";
  check_int32s(op, arg, expert_offsets, num_experts + 1, owner);
  const int32_t* offsets = int32s(expert_offsets);
  const auto refuse = [&](const std::string& got) {
    fail(op, arg, "a non-decreasing sequence within [0, " + std::to_string(num_rows) + "]", got);
  };
  for (int64_t e = 0; e < num_experts; ++e)
    if (offsets[e] > offsets[e + 1])
      refuse(std::to_string(offsets[e]) + " before " + std::to_string(offsets[e + 1]) + " at expert " +
             std::to_string(e));
  if (offsets[0] < 0) refuse(std::to_string(offsets[0]) + " at the start");
  if (offsets[num_experts] > num_rows) refuse(std::to_string(offsets[num_experts]) + " at the end");
}

inline void check_counts(const char* op, const Tensor& expert_counts, int64_t num_experts, int64_t num_rows,
                         const char* owner) {
  const char* arg = "expert_counts";
  check_int32s(op, arg, expert_counts, num_experts, owner);
  const int32_t* counts = int32s(expert_counts);
  for (int64_t e = 0; e < num_experts; ++e)
    if (counts[e] < 0 || counts[e] > num_rows)
      fail(op, arg, "counts within [0, " + std::to_string(num_rows) + "]",
           std::to_string(counts[e]) + " at expert " + std::to_string(e));
}

// Zeroes rows [begin, end) of a contiguous tensor of rows of its last dimension.
inline void zero_rows(Tensor& d, int64_t begin, int64_t end) {
  if (begin >= end) return;
  const int64_t bytes = d.size(d.dim() - 1) * cpu::size_of(cpu_dtype(d.scalar_type()));
  std::memset(static_cast<char*>(d.mutable_data_ptr()) + begin * bytes, 0, (end - begin) * bytes);
}

// Zeroes the rows of d that are in no group.
inline void zero_rows_outside(const Tensor& expert_offsets, Tensor& d) {
  const int32_t* offsets = int32s(expert_offsets);
  zero_rows(d, 0, offsets[0]);
  zero_rows(d, offsets[expert_offsets.size(0) - 1], d.size(0));
}

}  // namespace moela
