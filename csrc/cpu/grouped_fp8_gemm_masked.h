// Interface of the CPU grouped_fp8_gemm_masked: an fp8_gemm per expert with rows. Definition:
// python/moela/reference/grouped_fp8_gemm_masked.py.
#pragma once

#include "cpu/grouped_fp8_gemm.h"

namespace moela::cpu {

struct GroupedFp8GemmMaskedParams {
  GemmProblem first;  // of expert 0
  int64_t stride_ae;  // elements from one expert to the next
  int64_t stride_sf_ae;
  int64_t stride_be;
  int64_t stride_de;
  const int32_t* expert_counts;  // [num_experts]
  int64_t num_experts;
};

// sf_of(e): the scale factors of expert e; asked for experts with rows only.
template <class SfOf>
std::vector<GemmProblem> problems_of(const GroupedFp8GemmMaskedParams& params, const SfOf& sf_of) {
  std::vector<GemmProblem> problems;
  for (int64_t e = 0; e < params.num_experts; ++e) {
    if (params.expert_counts[e] == 0) continue;
    GemmProblem p = params.first;
    p.a = at_element(p.a, p.a_dtype, e * params.stride_ae);
    if (p.sf_a) p.sf_a += e * params.stride_sf_ae;
    p.d = at_element(p.d, p.d_dtype, e * params.stride_de);
    p.M = params.expert_counts[e];
    problems.push_back(with_expert(p, e, params.stride_be, sf_of(e)));
  }
  return problems;
}

}  // namespace moela::cpu
