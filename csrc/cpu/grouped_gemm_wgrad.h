// Interface of the CPU grouped_gemm_wgrad: grad.T @ a of the rows of each expert. Definition:
// python/moela/reference/grouped_gemm_wgrad.py.
#pragma once

#include "cpu/grouped_gemm.h"

namespace moela::cpu {

struct GroupedGemmWgradParams {
  const void* grad;  // [rows, N] of dtype, rows ld_grad elements apart
  int64_t ld_grad;
  const void* a;  // [rows, K]
  int64_t lda;
  Dtype dtype;
  void* grad_b;  // [num_experts, N, K], contiguous
  int64_t N;
  int64_t K;
  const int32_t* expert_offsets;  // [num_experts + 1]
  int64_t num_experts;
};

// The products of the experts with rows, for Kernels::grouped_gemm_wgrad. The sum runs over rows, so their
// number is the K of a product and both operands are stored with K first.
inline std::vector<GemmProblem> problems_of(const GroupedGemmWgradParams& p) {
  std::vector<GemmProblem> problems;
  for (int64_t e = 0; e < p.num_experts; ++e) {
    const int64_t first = p.expert_offsets[e], count = p.expert_offsets[e + 1] - first;
    if (count == 0) continue;
    GemmProblem problem = {};
    problem.a = at_element(p.grad, p.dtype, first * p.ld_grad);
    problem.a_dtype = problem.b_dtype = problem.d_dtype = p.dtype;
    problem.lda = p.ld_grad;
    problem.b = at_element(p.a, p.dtype, first * p.lda);
    problem.stride_bn = 1;
    problem.stride_bk = p.lda;
    problem.d = at_element(p.grad_b, p.dtype, e * p.N * p.K);
    problem.ldd = p.K;
    problem.M = p.N;
    problem.N = p.K;
    problem.K = count;
    problems.push_back(problem);
  }
  return problems;
}

}  // namespace moela::cpu
