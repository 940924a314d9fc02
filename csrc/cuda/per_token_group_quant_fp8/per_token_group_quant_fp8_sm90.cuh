// per_token_group_quant_fp8 on Hopper.
#pragma once

#include "cuda/block/quant.cuh"
#include "cuda/hopper/hopper.h"
#include "cuda/per_token_group_quant_fp8/per_token_group_quant_fp8.h"

namespace moela::cuda::sm90 {

struct PerTokenGroupQuantFp8Config {
  static constexpr int kWarpSize = 32, kWarpsPerBlock = 8, kThreads = kWarpsPerBlock * kWarpSize;
};

// Computes sf and q of one group. Bound: memory, x is read once from DRAM (the second pass hits L1).
// Grid: ceil(M * num_groups / kWarpsPerBlock) blocks; one warp owns one group.
// Invariant: every element of q and sf is written by exactly one warp; nothing beyond a row's K columns is
// read. Numerics: bit for bit the definition. As integers NaN > Inf > finite, so a NaN wins the maximum.
template <QuantInput kInput>
MOELA_KERNEL(PerTokenGroupQuantFp8Config::kThreads)
per_token_group_quant_fp8_kernel(MOELA_PARAM PerTokenGroupQuantFp8Params p) {
  using C = PerTokenGroupQuantFp8Config;
  const int64_t num_groups = (p.K + p.group_size - 1) / p.group_size;
  const int64_t group = static_cast<int64_t>(block()) * C::kWarpsPerBlock + warp();
  if (group >= p.M * num_groups) return;
  const int64_t m = group / num_groups, start = group % num_groups * p.group_size;
  const int64_t stop = p.K < start + p.group_size ? p.K : start + p.group_size;

  uint32_t amax = 0;
  for (int64_t k = start + lane(); k < stop; k += C::kWarpSize) {
    const uint32_t magnitude = bits_of(load_element<kInput>(p.x, m * p.ldx + k)) & 0x7FFFFFFF;
    amax = magnitude > amax ? magnitude : amax;
  }
  const float sf = scale_factor(redux_max(amax), p.ue8m0);
  if (lane() == 0) stg(p.sf + group, sf);
  for (int64_t k = start + lane(); k < stop; k += C::kWarpSize) {
    const float x = load_element<kInput>(p.x, m * p.ldx + k);
    stg(p.q + m * p.K + k, static_cast<uint8_t>(cvt_e4m3x2(div_rn(x, sf), 0.f)));
  }
}

inline LaunchShape per_token_group_quant_fp8_shape(const PerTokenGroupQuantFp8Params& p) {
  using C = PerTokenGroupQuantFp8Config;
  const int64_t num_groups = p.M * ((p.K + p.group_size - 1) / p.group_size);
  return {.grid = static_cast<int>((num_groups + C::kWarpsPerBlock - 1) / C::kWarpsPerBlock),
          .block = C::kThreads};
}

}  // namespace moela::cuda::sm90

namespace moela::cuda {

LaunchStatus launch_per_token_group_quant_fp8(const PerTokenGroupQuantFp8Params& p, Stream stream) {
  const LaunchShape shape = sm90::per_token_group_quant_fp8_shape(p);
  switch (p.x_dtype) {
    case QuantInput::kFloat32:
      return launch(shape, stream, &sm90::per_token_group_quant_fp8_kernel<QuantInput::kFloat32>, p);
    case QuantInput::kBFloat16:
      return launch(shape, stream, &sm90::per_token_group_quant_fp8_kernel<QuantInput::kBFloat16>, p);
    default: return launch(shape, stream, &sm90::per_token_group_quant_fp8_kernel<QuantInput::kFloat16>, p);
  }
}

}  // namespace moela::cuda
