// Copies of rows, and what a transport received: for the files of csrc/ops that move rows between ranks.
#pragma once

#include <algorithm>
#include <vector>

#include "common/tensor.h"
#include "cpu/isa.h"

namespace moela {

inline void check_bytes(const char* op, const char* arg, const Tensor& t) {
  check_dim(op, arg, t, 2);
  check_dtype(op, arg, t.scalar_type(), {ScalarType::Byte});
  check_last_dim_contiguous(op, arg, t);
}

inline const int32_t* check_ints(const char* op, const char* arg, const Tensor& t, int64_t size) {
  check_dtype(op, arg, t.scalar_type(), {ScalarType::Int});
  check_shape(op, arg, t, {size});
  check_last_dim_contiguous(op, arg, t);
  return static_cast<const int32_t*>(t.const_data_ptr());
}

inline void check_below(const char* op, const int32_t* rows, int64_t num_rows, const Tensor& source) {
  const int64_t num_sources = source.size(0);
  const int32_t* largest = std::max_element(rows, rows + num_rows);
  if (num_rows > 0 && *largest >= num_sources)
    fail(op, "rows", "less than " + std::to_string(num_sources), *largest);
}

// Rows of bytes, `stride` bytes apart.
struct Rows {
  const void* data;
  int64_t row_bytes;
  int64_t stride;
};

// From this size on a copy goes past the caches (docs/FACTS.md).
constexpr int64_t kStreamBytes = 8 << 20;

// rows[i] of source, zeros where that is below 0, to row i of out: a part of a copy of total_rows in all.
inline void gather(const Rows& source, const int32_t* rows, int64_t num_rows, void* out, int64_t out_stride,
                   int64_t total_rows) {
  const cpu::GatherRowsParams p = {
      .source = source.data,
      .row_bytes = source.row_bytes,
      .ld_source = source.stride,
      .rows = rows,
      .out = out,
      .ld_out = out_stride,
      .is_streamed = total_rows * source.row_bytes >= kStreamBytes,
  };
  parallel(num_rows, 0.1 * static_cast<double>(p.row_bytes),
           [&](int64_t begin, int64_t end) { cpu::kernels().gather_rows(p, begin, end); });
}

// The rows that came from each source: those of source s are rows starts[s] .. starts[s] + counts[s] of wire.
struct ReceivedRows {
  ReceivedRows(const char* op, const Tensor& wire, const Tensor& starts_, const Tensor& counts_)
      : num_sources(starts_.size(0)),
        starts(check_ints(op, "starts", starts_, num_sources)),
        counts(check_ints(op, "counts", counts_, num_sources)) {
    for (int64_t s = 0; s < num_sources; ++s) {
      if (starts[s] < 0 || counts[s] < 0 || int64_t{starts[s]} + counts[s] > wire.size(0))
        fail(op, "counts", "rows of wire", counts[s]);
      num_rows += counts[s];
    }
  }
  // f(n, row of wire), n counts from 0.
  template <class F>
  void for_each(const F& f) const {
    int64_t n = 0;
    for (int64_t s = 0; s < num_sources; ++s)
      for (int64_t i = 0; i < counts[s]; ++i) f(n++, starts[s] + i);
  }
  int64_t num_sources;
  const int32_t* starts;
  const int32_t* counts;
  int64_t num_rows = 0;
};

}  // namespace moela
