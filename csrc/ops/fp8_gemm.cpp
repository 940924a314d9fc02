// Torch side of the CPU fp8_gemm: check, plan, launch. Definition: python/moela/reference/fp8_gemm.py.
#include "cpu/fp8_gemm.h"

#include "common/fp8_operands.h"
#include "cpu/isa.h"

namespace moela {
namespace {

constexpr const char* kOp = "fp8_gemm";
void check(const Tensor& a, const std::optional<Tensor>& sf_a, const Tensor& b, const Tensor& sf_b,
           const std::optional<Tensor>& bias, ScalarType out_dtype) {
  using enum ScalarType;
  check_operands(kOp, a, sf_a, b, sf_b, 2, 2);
  if (bias) {
    check_dtype(kOp, "bias", bias->scalar_type(), {BFloat16, Half, Float});
    check_shape(kOp, "bias", *bias, {b.size(0)});
    check_cpu(kOp, "bias", *bias, "a");
  }
  check_dtype(kOp, "out_dtype", out_dtype, {BFloat16, Half, Float});
}

void launch(const Tensor& a, const std::optional<Tensor>& sf_a, const Tensor& b, const Tensor& sf_b,
            const std::optional<Tensor>& bias, Tensor& d) {
  const Float32View sf_b_values(sf_b);
  const std::optional<Float32View> bias_values = bias ? std::optional<Float32View>(*bias) : std::nullopt;
  cpu::GemmProblem problem = problem_of(a, sf_a, b, d);
  problem.sf_b = sf_b_values.data();
  problem.has_large_sf = cpu::has_large_sf(sf_b_values.data(), sf_b.numel());
  problem.bias = bias_values ? bias_values->data() : nullptr;
  cpu::fp8_gemm(cpu::kernels().gemm, problem, allocate_floats, [](auto... args) { parallel(args...); });
}

Tensor fp8_gemm(const Tensor& a, const std::optional<Tensor>& sf_a, const Tensor& b, const Tensor& sf_b,
                const std::optional<Tensor>& bias, ScalarType out_dtype) {
  check(a, sf_a, b, sf_b, bias, out_dtype);
  Tensor d = empty_cpu({a.size(0), b.size(0)}, out_dtype);
  launch(a, sf_a, b, sf_b, bias, d);
  return d;
}

void fp8_gemm_out(const Tensor& a, const std::optional<Tensor>& sf_a, const Tensor& b, const Tensor& sf_b,
                  const std::optional<Tensor>& bias, Tensor d) {
  check(a, sf_a, b, sf_b, bias, d.scalar_type());
  check_rows_out("fp8_gemm_out", "d", d, {a.size(0), b.size(0)});
  launch(a, sf_a, b, sf_b, bias, d);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela, CPU, m) {
  m.impl("fp8_gemm", TORCH_BOX(&fp8_gemm));
  m.impl("fp8_gemm_out", TORCH_BOX(&fp8_gemm_out));
}

}  // namespace moela
