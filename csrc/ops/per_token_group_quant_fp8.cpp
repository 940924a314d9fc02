// Torch side of the CPU per_token_group_quant_fp8: check, launch.
#include "common/check.h"
#include "common/tensor.h"
#include "cpu/isa.h"

namespace moela {
namespace {

constexpr const char* kOp = "per_token_group_quant_fp8";
constexpr const char* kOutOp = "per_token_group_quant_fp8_out";

void check(const Tensor& x, int64_t group_size) {
  using enum ScalarType;
  check_min_dim(kOp, "x", x, 1);
  check_dtype(kOp, "x", x.scalar_type(), {BFloat16, Half, Float});
  check_last_dim_contiguous(kOp, "x", x);
  if (group_size <= 0) fail(kOp, "group_size", "a positive number", group_size);
}

std::vector<int64_t> sf_shape(const Tensor& x, int64_t group_size) {
  std::vector<int64_t> shape = sizes_of(x);
  shape.back() = shape.back() / group_size + (shape.back() % group_size != 0);
  return shape;
}

void launch(const Tensor& x, int64_t group_size, bool ue8m0, Tensor& q, Tensor& sf) {
  const FlatRows rows(x, 1);
  const cpu::PerTokenGroupQuantFp8Params p = {
      .x = rows.tensor.const_data_ptr(),
      .x_dtype = cpu_dtype(x.scalar_type()),
      .ldx = rows.stride,
      .q = static_cast<uint8_t*>(q.mutable_data_ptr()),
      .sf = static_cast<float*>(sf.mutable_data_ptr()),
      .M = rows.count,
      .K = x.size(x.dim() - 1),
      .group_size = group_size,
      .ue8m0 = ue8m0,
  };
  if (p.M == 0 || p.K == 0) return;
  parallel(p.M, 0.3 * static_cast<double>(p.K),
           [&](int64_t begin, int64_t end) { cpu::kernels().per_token_group_quant_fp8(p, begin, end); });
}

std::tuple<Tensor, Tensor> per_token_group_quant_fp8(const Tensor& x, int64_t group_size, bool ue8m0) {
  check(x, group_size);
  Tensor q = empty_cpu(sizes_of(x), ScalarType::Float8_e4m3fn);
  Tensor sf = empty_cpu(sf_shape(x, group_size), ScalarType::Float);
  launch(x, group_size, ue8m0, q, sf);
  return {q, sf};
}

void per_token_group_quant_fp8_out(const Tensor& x, int64_t group_size, bool ue8m0, Tensor q, Tensor sf) {
  check(x, group_size);
  check_out(kOutOp, "q", q, ScalarType::Float8_e4m3fn, sizes_of(x));
  check_out(kOutOp, "sf", sf, ScalarType::Float, sf_shape(x, group_size));
  launch(x, group_size, ue8m0, q, sf);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela, CPU, m) {
  m.impl("per_token_group_quant_fp8", TORCH_BOX(&per_token_group_quant_fp8));
  m.impl("per_token_group_quant_fp8_out", TORCH_BOX(&per_token_group_quant_fp8_out));
}

}  // namespace moela
