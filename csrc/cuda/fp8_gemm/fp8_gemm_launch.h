// The host side of fp8_gemm on Hopper: the kernel that the plan names.
#pragma once

#include <utility>

#include "cuda/block/gemm_launch.h"
#include "cuda/fp8_gemm/fp8_gemm.h"
#include "cuda/fp8_gemm/fp8_gemm_sm90.cuh"

namespace moela::cuda {
namespace fp8_gemm_host {

template <int kTile>
std::string launch_tile(const GemmArgs& g, const plan::Fp8GemmSm90Plan& plan, Stream stream) {
  using C = sm90::GemmConfig<kTile>;
  gemm_host::Launch l = {.by_tma = nullptr,
                         .from_registers = &sm90::fp8_gemm_kernel<C, false>,
                         .splits = plan.splits,
                         .cluster = plan.cluster,
                         .grid = plan.grid,
                         .stream = stream};
  if constexpr (!C::kSwaps) l.by_tma = &sm90::fp8_gemm_kernel<C, true>;
  return gemm_host::launch_gemm<C>(g, l);
}

template <int... kTiles>
std::string launch_any(const GemmArgs& g, const plan::Fp8GemmSm90Plan& plan, Stream stream,
                       std::integer_sequence<int, kTiles...>) {
  using LaunchFn = std::string (*)(const GemmArgs&, const plan::Fp8GemmSm90Plan&, Stream);
  constexpr LaunchFn kLaunch[] = {launch_tile<kTiles>...};
  return kLaunch[plan.tile](g, plan, stream);
}

}  // namespace fp8_gemm_host

std::string why_not_fp8_gemm(const GemmArgs& g) { return gemm_host::why_not(g); }

std::string launch_fp8_gemm(const GemmArgs& g, const plan::Fp8GemmSm90Plan& plan, Stream stream) {
  if (plan.splits > plan::ceil_div(g.K, 128)) return "a split of the sum over K would be empty";
  return fp8_gemm_host::launch_any(g, plan, stream,
                                   std::make_integer_sequence<int, plan::kNumGemmSm90Tiles>());
}

}  // namespace moela::cuda
