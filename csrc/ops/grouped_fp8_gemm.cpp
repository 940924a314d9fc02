// Torch side of the CPU grouped_fp8_gemm: check, plan, launch. Definition:
// python/moela/reference/grouped_fp8_gemm.py.
#include "cpu/grouped_fp8_gemm.h"

#include "common/expert_rows.h"
#include "common/fp8_operands.h"
#include "cpu/isa.h"

namespace moela {
namespace {

constexpr const char* kOp = "grouped_fp8_gemm";

void check(const Tensor& a, const std::optional<Tensor>& sf_a, const Tensor& b, const Tensor& sf_b,
           const Tensor& expert_offsets, ScalarType out_dtype) {
  using enum ScalarType;
  check_operands(kOp, a, sf_a, b, sf_b, 2, 3);
  check_dtype(kOp, "out_dtype", out_dtype, {BFloat16, Half, Float});
  check_offsets(kOp, expert_offsets, b.size(0), a.size(0), "a");
}

void launch(const Tensor& a, const std::optional<Tensor>& sf_a, const Tensor& b, const Tensor& sf_b,
            const Tensor& expert_offsets, Tensor& d) {
  ExpertFloats sf(sf_b);
  const cpu::GroupedGemmParams params = {.all = problem_of(a, sf_a, b, d),
                                         .stride_be = b.stride(0),
                                         .expert_offsets = int32s(expert_offsets),
                                         .num_experts = b.size(0)};
  const auto problems = cpu::problems_of(params, [&](int64_t expert) { return sf.of(expert); });
  cpu::run_gemms(cpu::kernels().gemm, problems, allocate_floats, [](auto... args) { parallel(args...); });
}

Tensor grouped_fp8_gemm(const Tensor& a, const std::optional<Tensor>& sf_a, const Tensor& b,
                        const Tensor& sf_b, const Tensor& expert_offsets, ScalarType out_dtype) {
  check(a, sf_a, b, sf_b, expert_offsets, out_dtype);
  Tensor d = empty_cpu({a.size(0), b.size(1)}, out_dtype);
  zero_rows_outside(expert_offsets, d);
  launch(a, sf_a, b, sf_b, expert_offsets, d);
  return d;
}

void grouped_fp8_gemm_out(const Tensor& a, const std::optional<Tensor>& sf_a, const Tensor& b,
                          const Tensor& sf_b, const Tensor& expert_offsets, Tensor d) {
  check(a, sf_a, b, sf_b, expert_offsets, d.scalar_type());
  check_rows_out("grouped_fp8_gemm_out", "d", d, {a.size(0), b.size(1)});
  launch(a, sf_a, b, sf_b, expert_offsets, d);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela, CPU, m) {
  m.impl("grouped_fp8_gemm", TORCH_BOX(&grouped_fp8_gemm));
  m.impl("grouped_fp8_gemm_out", TORCH_BOX(&grouped_fp8_gemm_out));
}

}  // namespace moela
