// Torch side of gather_rows, which is no op of its own: the copies of ep_dispatch and ep_combine.
#include "common/tensor.h"
#include "cpu/isa.h"

namespace moela {
namespace {

constexpr const char* kOp = "gather_rows";

void check_bytes(const char* arg, const Tensor& t) {
  check_dim(kOp, arg, t, 2);
  check_dtype(kOp, arg, t.scalar_type(), {ScalarType::Byte});
  check_last_dim_contiguous(kOp, arg, t);
}

void gather_rows(const Tensor& source, const Tensor& rows, Tensor out) {
  check_bytes("source", source);
  check_bytes("out", out);
  check_shape(kOp, "out", out, {rows.size(0), source.size(1)});
  check_dtype(kOp, "rows", rows.scalar_type(), {ScalarType::Int});
  check_last_dim_contiguous(kOp, "rows", rows);
  const cpu::GatherRowsParams p = {
      .source = source.const_data_ptr(),
      .row_bytes = source.size(1),
      .ld_source = source.stride(0),
      .rows = static_cast<const int32_t*>(rows.const_data_ptr()),
      .out = out.mutable_data_ptr(),
      .ld_out = out.stride(0),
      .num_rows = rows.size(0),
  };
  const int64_t num_sources = source.size(0);
  for (int64_t i = 0; i < p.num_rows; ++i)
    if (p.rows[i] >= num_sources)
      fail(kOp, "rows", "rows of source, less than " + std::to_string(num_sources), p.rows[i]);
  parallel(p.num_rows, 0.1 * static_cast<double>(p.row_bytes),
           [&](int64_t begin, int64_t end) { cpu::kernels().gather_rows(p, begin, end); });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela_ep, CPU, m) { m.impl("gather_rows", TORCH_BOX(&gather_rows)); }

}  // namespace moela
