// The host side of grouped_fp8_gemm on Hopper.
#pragma once

#include "cuda/block/gemm_launch.h"
#include "cuda/grouped_fp8_gemm/grouped_fp8_gemm.h"
#include "cuda/grouped_fp8_gemm/grouped_fp8_gemm_sm90.cuh"

namespace moela::cuda {

struct GroupedFp8GemmKernels {
  template <class C>
  static constexpr auto by_tma() {
    return &sm90::grouped_fp8_gemm_kernel<C, true>;
  }
  template <class C>
  static constexpr auto from_registers() {
    return &sm90::grouped_fp8_gemm_kernel<C, false>;
  }
};

std::string why_not_grouped_fp8_gemm(const GemmArgs& g) { return gemm_host::why_not(g); }

plan::GroupedRows grouped_rows(const GemmArgs& g) {
  return {.M = g.M, .num_experts = g.num_experts, .is_masked = g.groups == GroupKind::kCounts};
}

std::string launch_grouped_fp8_gemm(const GemmArgs& g, const plan::GroupedFp8GemmSm90Plan& p, Stream stream) {
  return gemm_host::launch_gemm<GroupedFp8GemmKernels>(g, {p.tile, p.splits, p.cluster, p.grid, stream});
}

}  // namespace moela::cuda
