// Torch side of the CPU silu_and_mul_quant_fp8: check, launch.
#include "common/swiglu.h"
#include "common/tensor.h"
#include "cpu/isa.h"

namespace moela {
namespace {

using Number = std::optional<double>;
constexpr const char* kOp = "silu_and_mul_quant_fp8";
constexpr const char* kOutOp = "silu_and_mul_quant_fp8_out";

void check(const Tensor& x, const Number& limit, const Number& alpha, int64_t group_size) {
  check_swiglu(kOp, x, limit, alpha);
  if (group_size <= 0) fail(kOp, "group_size", "a positive number", group_size);
}

std::vector<int64_t> sf_shape(const Tensor& x, int64_t group_size) {
  std::vector<int64_t> shape = half_of_last(sizes_of(x));
  shape.back() = shape.back() / group_size + (shape.back() % group_size != 0);
  return shape;
}

void launch(const Tensor& x, const Number& limit, const Number& alpha, int64_t group_size, bool ue8m0,
            Tensor& q, Tensor& sf) {
  const FlatRows rows(x, 1);
  const int64_t K = x.size(x.dim() - 1) / 2;
  const cpu::SiluAndMulQuantFp8Params p = {
      .x = rows.tensor.const_data_ptr(),
      .x_dtype = cpu_dtype(x.scalar_type()),
      .ldx = rows.stride,
      .q = static_cast<uint8_t*>(q.mutable_data_ptr()),
      .sf = static_cast<float*>(sf.mutable_data_ptr()),
      .M = rows.count,
      .K = K,
      .activation = swiglu_of(limit, alpha),
      .group_size = group_size < K ? group_size : K,
      .ue8m0 = ue8m0,
  };
  if (p.M == 0 || p.K == 0) return;
  parallel(p.M, 1.0 * static_cast<double>(p.K),
           [&](int64_t begin, int64_t end) { cpu::kernels().silu_and_mul_quant_fp8(p, begin, end); });
}

std::tuple<Tensor, Tensor> silu_and_mul_quant_fp8(const Tensor& x, Number limit, Number alpha,
                                                  int64_t group_size, bool ue8m0) {
  check(x, limit, alpha, group_size);
  Tensor q = empty_cpu(half_of_last(sizes_of(x)), ScalarType::Float8_e4m3fn);
  Tensor sf = empty_cpu(sf_shape(x, group_size), ScalarType::Float);
  launch(x, limit, alpha, group_size, ue8m0, q, sf);
  return {q, sf};
}

void silu_and_mul_quant_fp8_out(const Tensor& x, Number limit, Number alpha, int64_t group_size, bool ue8m0,
                                Tensor q, Tensor sf) {
  check(x, limit, alpha, group_size);
  check_out(kOutOp, "q", q, ScalarType::Float8_e4m3fn, half_of_last(sizes_of(x)));
  check_out(kOutOp, "sf", sf, ScalarType::Float, sf_shape(x, group_size));
  launch(x, limit, alpha, group_size, ue8m0, q, sf);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela, CPU, m) {
  m.impl("silu_and_mul_quant_fp8", TORCH_BOX(&silu_and_mul_quant_fp8));
  m.impl("silu_and_mul_quant_fp8_out", TORCH_BOX(&silu_and_mul_quant_fp8_out));
}

}  // namespace moela
