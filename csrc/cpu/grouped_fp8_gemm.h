// Interface of the CPU grouped_fp8_gemm: an fp8_gemm per expert with rows. Definition:
// python/moela/reference/grouped_fp8_gemm.py.
#pragma once

#include "cpu/fp8_gemm.h"
#include "cpu/grouped_gemm.h"

namespace moela::cpu {

// Expert e's weights and scale factors [ceil(N/128), ceil(K/128)], contiguous, for a problem of its rows.
inline GemmProblem with_expert(GemmProblem p, int64_t e, int64_t stride_be, const float* sf_b) {
  p.b = at_element(p.b, p.b_dtype, e * stride_be);
  p.sf_b = sf_b;
  p.has_large_sf = has_large_sf(sf_b, (p.N + 127) / 128 * ((p.K + 127) / 128));
  return p;
}

// sf_of(e): the scale factors of expert e; asked for experts with rows only.
template <class SfOf>
std::vector<GemmProblem> problems_of(const GroupedGemmParams& params, const SfOf& sf_of) {
  std::vector<GemmProblem> problems;
  for (int64_t e = 0; e < params.num_experts; ++e) {
    const int64_t first = params.expert_offsets[e], count = params.expert_offsets[e + 1] - first;
    if (count == 0) continue;
    problems.push_back(with_expert(rows_of(params.all, first, count), e, params.stride_be, sf_of(e)));
  }
  return problems;
}

}  // namespace moela::cpu
