// Torch side of the CPU grouped_gemm_wgrad: check, plan, launch. Definition:
// python/moela/reference/grouped_gemm_wgrad.py.
#include "cpu/grouped_gemm_wgrad.h"

#include "common/expert_rows.h"
#include "cpu/isa.h"

namespace moela {
namespace {

constexpr const char* kOp = "grouped_gemm_wgrad";

void check(const Tensor& grad, const Tensor& a, const Tensor& expert_offsets) {
  using enum ScalarType;
  check_dim(kOp, "grad", grad, 2);
  check_dtype(kOp, "grad", grad.scalar_type(), {BFloat16, Half, Float});
  check_last_dim_contiguous(kOp, "grad", grad);
  check_dim(kOp, "a", a, 2);
  check_same_dtype(kOp, "a", a.scalar_type(), grad.scalar_type(), "grad");
  check_same(kOp, "a", "M", a.size(0), grad.size(0), "grad");
  check_last_dim_contiguous(kOp, "a", a);
  check_cpu(kOp, "a", a, "grad");
  check_dim(kOp, "expert_offsets", expert_offsets, 1);
  if (expert_offsets.size(0) == 0) fail(kOp, "expert_offsets", "at least one element", 0);
  check_offsets(kOp, expert_offsets, expert_offsets.size(0) - 1, grad.size(0), "grad");
}

std::vector<int64_t> shape_of(const Tensor& grad, const Tensor& a, const Tensor& expert_offsets) {
  return {expert_offsets.size(0) - 1, grad.size(1), a.size(1)};
}

void launch(const Tensor& grad, const Tensor& a, const Tensor& expert_offsets, Tensor& grad_b) {
  const cpu::GroupedGemmWgradParams p = {.grad = grad.const_data_ptr(),
                                         .ld_grad = grad.stride(0),
                                         .a = a.const_data_ptr(),
                                         .lda = a.stride(0),
                                         .dtype = cpu_dtype(a.scalar_type()),
                                         .grad_b = grad_b.mutable_data_ptr(),
                                         .N = grad.size(1),
                                         .K = a.size(1),
                                         .expert_offsets = int32s(expert_offsets),
                                         .num_experts = expert_offsets.size(0) - 1};
  for (int64_t e = 0; e < p.num_experts; ++e)
    if (p.expert_offsets[e] == p.expert_offsets[e + 1]) zero_rows(grad_b, e * p.N, (e + 1) * p.N);
  cpu::run_gemms(cpu::kernels().grouped_gemm_wgrad, cpu::problems_of(p), allocate_floats,
                 [](auto... args) { parallel(args...); });
}

Tensor grouped_gemm_wgrad(const Tensor& grad, const Tensor& a, const Tensor& expert_offsets) {
  check(grad, a, expert_offsets);
  Tensor grad_b = empty_cpu(shape_of(grad, a, expert_offsets), a.scalar_type());
  launch(grad, a, expert_offsets, grad_b);
  return grad_b;
}

void grouped_gemm_wgrad_out(const Tensor& grad, const Tensor& a, const Tensor& expert_offsets,
                            Tensor grad_b) {
  check(grad, a, expert_offsets);
  check_out("grouped_gemm_wgrad_out", "grad_b", grad_b, a.scalar_type(), shape_of(grad, a, expert_offsets));
  launch(grad, a, expert_offsets, grad_b);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela, CPU, m) {
  m.impl("grouped_gemm_wgrad", TORCH_BOX(&grouped_gemm_wgrad));
  m.impl("grouped_gemm_wgrad_out", TORCH_BOX(&grouped_gemm_wgrad_out));
}

}  // namespace moela
