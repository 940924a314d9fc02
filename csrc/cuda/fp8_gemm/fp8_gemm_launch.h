// The host side of fp8_gemm on Hopper.
#pragma once

#include "cuda/block/gemm_launch.h"
#include "cuda/fp8_gemm/fp8_gemm.h"
#include "cuda/fp8_gemm/fp8_gemm_sm90.cuh"

namespace moela::cuda {

struct Fp8GemmKernels {
  template <class C>
  static constexpr auto by_tma() {
    return &sm90::fp8_gemm_kernel<C, true>;
  }
  template <class C>
  static constexpr auto from_registers() {
    return &sm90::fp8_gemm_kernel<C, false>;
  }
};

std::string why_not_fp8_gemm(const GemmArgs& g) { return gemm_host::why_not(g); }

std::string launch_fp8_gemm(const GemmArgs& g, const plan::Fp8GemmSm90Plan& p, Stream stream) {
  return gemm_host::launch_gemm<Fp8GemmKernels>(g, {p.tile, p.splits, p.cluster, p.grid, stream});
}

}  // namespace moela::cuda
