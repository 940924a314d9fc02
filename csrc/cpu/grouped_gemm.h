// Interface of the CPU grouped_gemm: a matrix product per expert with rows. Definition:
// python/moela/reference/grouped_gemm.py.
#pragma once

#include <vector>

#include "cpu/gemm_driver.h"

namespace moela::cpu {

// `count` rows of a problem, from row `first` of a, of its scale factors and of d on.
inline GemmProblem rows_of(GemmProblem p, int64_t first, int64_t count) {
  p.a = at_element(p.a, p.a_dtype, first * p.lda);
  if (p.sf_a) p.sf_a += first * p.sf_a_stride_m;
  p.d = at_element(p.d, p.d_dtype, first * p.ldd);
  p.M = count;
  return p;
}

struct GroupedGemmParams {
  GemmProblem all;                // with the weights of expert 0
  int64_t stride_be;              // elements from the weights of one expert to those of the next
  const int32_t* expert_offsets;  // [num_experts + 1]
  int64_t num_experts;
};

inline std::vector<GemmProblem> problems_of(const GroupedGemmParams& params) {
  std::vector<GemmProblem> problems;
  for (int64_t e = 0; e < params.num_experts; ++e) {
    const int64_t first = params.expert_offsets[e], count = params.expert_offsets[e + 1] - first;
    if (count == 0) continue;
    GemmProblem p = rows_of(params.all, first, count);
    p.b = at_element(p.b, p.b_dtype, e * params.stride_be);
    problems.push_back(p);
  }
  return problems;
}

}  // namespace moela::cpu
