// Torch side of the CPU grouped_fp8_gemm_masked: check, plan, launch. Definition:
// python/moela/reference/grouped_fp8_gemm_masked.py.
#include "cpu/grouped_fp8_gemm_masked.h"

#include "common/expert_rows.h"
#include "common/fp8_operands.h"
#include "cpu/isa.h"

namespace moela {
namespace {

constexpr const char* kOp = "grouped_fp8_gemm_masked";

void check(const Tensor& a, const std::optional<Tensor>& sf_a, const Tensor& b, const Tensor& sf_b,
           const Tensor& expert_counts, ScalarType out_dtype) {
  using enum ScalarType;
  check_operands(kOp, a, sf_a, b, sf_b, 3, 3);
  check_dtype(kOp, "out_dtype", out_dtype, {BFloat16, Half, Float});
  check_counts(kOp, expert_counts, a.size(0), a.size(1), "a");
}

void launch(const Tensor& a, const std::optional<Tensor>& sf_a, const Tensor& b, const Tensor& sf_b,
            const Tensor& expert_counts, Tensor& d) {
  ExpertFloats sf(sf_b);
  const cpu::GroupedFp8GemmMaskedParams params = {.first = problem_of(a, sf_a, b, d),
                                                  .stride_ae = a.stride(0),
                                                  .stride_sf_ae = sf_a ? sf_a->stride(0) : 0,
                                                  .stride_be = b.stride(0),
                                                  .stride_de = d.stride(0),
                                                  .expert_counts = int32s(expert_counts),
                                                  .num_experts = a.size(0)};
  const auto problems = cpu::problems_of(params, [&](int64_t expert) { return sf.of(expert); });
  cpu::run_gemms(cpu::kernels().gemm, problems, allocate_floats, [](auto... args) { parallel(args...); });
}

Tensor grouped_fp8_gemm_masked(const Tensor& a, const std::optional<Tensor>& sf_a, const Tensor& b,
                               const Tensor& sf_b, const Tensor& expert_counts, ScalarType out_dtype) {
  check(a, sf_a, b, sf_b, expert_counts, out_dtype);
  const int64_t num_rows = a.size(1);
  Tensor d = empty_cpu({a.size(0), num_rows, b.size(1)}, out_dtype);
  for (int64_t e = 0; e < a.size(0); ++e)
    zero_rows(d, e * num_rows + int32s(expert_counts)[e], (e + 1) * num_rows);
  launch(a, sf_a, b, sf_b, expert_counts, d);
  return d;
}

void grouped_fp8_gemm_masked_out(const Tensor& a, const std::optional<Tensor>& sf_a, const Tensor& b,
                                 const Tensor& sf_b, const Tensor& expert_counts, Tensor d) {
  check(a, sf_a, b, sf_b, expert_counts, d.scalar_type());
  check_rows_out("grouped_fp8_gemm_masked_out", "d", d, {a.size(0), a.size(1), b.size(1)});
  launch(a, sf_a, b, sf_b, expert_counts, d);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela, CPU, m) {
  m.impl("grouped_fp8_gemm_masked", TORCH_BOX(&grouped_fp8_gemm_masked));
  m.impl("grouped_fp8_gemm_masked_out", TORCH_BOX(&grouped_fp8_gemm_masked_out));
}

}  // namespace moela
