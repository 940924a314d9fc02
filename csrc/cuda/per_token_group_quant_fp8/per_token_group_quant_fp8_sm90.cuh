// per_token_group_quant_fp8 on Hopper.
#pragma once

#include "cuda/hopper/hopper.h"
#include "cuda/per_token_group_quant_fp8/per_token_group_quant_fp8.h"

namespace moela::cuda::sm90 {

struct PerTokenGroupQuantFp8Config {
  static constexpr int kWarpSize = 32, kWarpsPerBlock = 8, kThreads = kWarpsPerBlock * kWarpSize;
};

template <QuantInput kInput>
MOELA_DEVICE float load_element(const void* x, int64_t index) {
  if constexpr (kInput == QuantInput::kFloat32) {
    return ldg(static_cast<const float*>(x) + index);
  } else if constexpr (kInput == QuantInput::kBFloat16) {
    return cvt_f32_of_bf16(ldg(static_cast<const uint16_t*>(x) + index));
  } else {
    return cvt_f32_of_f16(ldg(static_cast<const uint16_t*>(x) + index));
  }
}

// max(amax / 448, 2^-126); with ue8m0 rounded up to a power of two. NaN and Inf stay.
MOELA_DEVICE float scale_factor(uint32_t amax, bool ue8m0) {
  const float exact = div_rn(float_of(amax), 448.f);
  const float sf = exact < 0x1p-126f ? 0x1p-126f : exact;
  const uint32_t u = bits_of(sf);
  if (!ue8m0 || u >= 0x7F800000) return sf;
  return float_of((u + 0x7FFFFF) & 0x7F800000);
}

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
