// The indexer's arguments: checks in the words of python/moela/ops/_indexer_check.py, and their plain form.
#pragma once

#include <optional>
#include <string>

#include "common/mla_batch.h"
#include "cpu/indexer_cache.h"

namespace moela {

inline void check_indexer_cache(const char* op, const Tensor& cache, int64_t D, const char* owner) {
  check_dim(op, "cache", cache, 3);
  check_dtype(op, "cache", cache.scalar_type(), {ScalarType::Byte});
  const int64_t row = D + cpu::kIndexerSfBytes;
  if (cache.size(2) != row) fail(op, "cache", "rows of " + std::to_string(row) + " bytes", cache.size(2));
  check_last_dim_contiguous(op, "cache", cache);
  if (cache.size(1) > 1 && cache.stride(1) != row)
    fail(op, "cache", "pages without gaps (rows " + std::to_string(row) + " bytes apart)",
         "rows " + std::to_string(cache.stride(1)) + " apart");
  check_cpu(op, "cache", cache, owner);
}

inline cpu::IndexerCache indexer_cache_of(const Tensor& cache, const void* data) {
  return {
      .data = static_cast<uint8_t*>(const_cast<void*>(data)),
      .D = cache.size(2) - cpu::kIndexerSfBytes,
      .page_size = cache.size(1),
      .page_bytes = cache.stride(0),
  };
}

// int32 values of rows in order: [...] of any strides, or none.
class RowValues {
 public:
  RowValues() = default;
  RowValues(const char* op, const char* arg, const std::optional<Tensor>& t,
            const std::vector<int64_t>& shape, const char* owner) {
    if (!t) return;
    check_dtype(op, arg, t->scalar_type(), {ScalarType::Int});
    check_shape(op, arg, *t, shape);
    check_cpu(op, arg, *t, owner);
    tensor_ = torch::stable::contiguous(*t);
    count_ = 1;
    for (const int64_t size : shape) count_ *= size;
  }
  const int32_t* data() const { return tensor_ ? int32s(*tensor_) : nullptr; }
  // How many; 0 where there is no tensor.
  int64_t count() const { return count_; }

 private:
  std::optional<Tensor> tensor_;
  int64_t count_ = 0;
};

inline std::string at_row(int64_t value, int64_t row) {
  return std::to_string(value) + " at row " + std::to_string(row);
}

inline void check_ranges(const char* op, const RowValues& ks, const RowValues& ke, int64_t S) {
  for (int64_t row = 0; row < ks.count(); ++row)
    if (ks.data()[row] < 0) fail(op, "ks", "starts of at least 0", at_row(ks.data()[row], row));
  for (int64_t row = 0; row < ke.count(); ++row)
    if (ke.data()[row] > S)
      fail(op, "ke", "ends of at most " + std::to_string(S), at_row(ke.data()[row], row));
}

}  // namespace moela
