// Torch side of the CPU grouped_gemm: check, plan, launch. Definition:
// python/moela/reference/grouped_gemm.py.
#include "cpu/grouped_gemm.h"

#include "common/expert_rows.h"
#include "common/fp8_operands.h"
#include "cpu/isa.h"

namespace moela {
namespace {

constexpr const char* kOp = "grouped_gemm";

void check(const Tensor& a, const Tensor& b, const Tensor& expert_offsets) {
  using enum ScalarType;
  check_dim(kOp, "a", a, 2);
  check_dtype(kOp, "a", a.scalar_type(), {BFloat16, Half, Float});
  check_last_dim_contiguous(kOp, "a", a);
  check_dim(kOp, "b", b, 3);
  check_same_dtype(kOp, "b", b.scalar_type(), a.scalar_type(), "a");
  check_same(kOp, "b", "K", b.size(2), a.size(1), "a");
  if (b.size(2) > 1 && b.stride(2) != 1 && b.size(1) > 1 && b.stride(1) != 1)
    fail(kOp, "b", "stride 1 in one of its last two dimensions",
         "strides " + std::to_string(b.stride(1)) + " and " + std::to_string(b.stride(2)),
         "call .contiguous()");
  check_cpu(kOp, "b", b, "a");
  check_offsets(kOp, expert_offsets, b.size(0), a.size(0), "a");
}

void launch(const Tensor& a, const Tensor& b, const Tensor& expert_offsets, Tensor& d) {
  cpu::GroupedGemmParams params = {.all = problem_of(a, std::nullopt, b, d),
                                   .stride_be = b.stride(0),
                                   .expert_offsets = int32s(expert_offsets),
                                   .num_experts = b.size(0)};
  if (b.size(2) > 1 && b.stride(2) != 1) {  // stored [E, K, N]
    params.all.stride_bn = 1;
    params.all.stride_bk = b.stride(2);
  }
  cpu::run_gemms(cpu::kernels().gemm, cpu::problems_of(params), allocate_floats,
                 [](auto... args) { parallel(args...); });
}

Tensor grouped_gemm(const Tensor& a, const Tensor& b, const Tensor& expert_offsets) {
  check(a, b, expert_offsets);
  Tensor d = empty_cpu({a.size(0), b.size(1)}, a.scalar_type());
  zero_rows_outside(expert_offsets, d);
  launch(a, b, expert_offsets, d);
  return d;
}

void grouped_gemm_out(const Tensor& a, const Tensor& b, const Tensor& expert_offsets, Tensor d) {
  check(a, b, expert_offsets);
  check_dtype("grouped_gemm_out", "d", d.scalar_type(), {a.scalar_type()});
  check_rows_out("grouped_gemm_out", "d", d, {a.size(0), b.size(1)});
  launch(a, b, expert_offsets, d);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela, CPU, m) {
  m.impl("grouped_gemm", TORCH_BOX(&grouped_gemm));
  m.impl("grouped_gemm_out", TORCH_BOX(&grouped_gemm_out));
}

}  // namespace moela
