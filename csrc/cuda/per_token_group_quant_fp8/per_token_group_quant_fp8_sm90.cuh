// per_token_group_quant_fp8 on Hopper.
#pragma once

#include "cuda/block/quant.cuh"
#include "cuda/hopper/hopper.h"
#include "cuda/per_token_group_quant_fp8/per_token_group_quant_fp8.h"

namespace moela::cuda::sm90 {

struct PerTokenGroupQuantFp8Config {
  static constexpr int kWarpSize = 32, kWarpsPerBlock = 8, kThreads = kWarpsPerBlock * kWarpSize;
};

// Four neighbouring elements by one instruction: x + index is a multiple of four elements.
template <QuantInput kInput>
MOELA_DEVICE void load_four(const void* x, int64_t index, float (&out)[4]) {
  if constexpr (kInput == QuantInput::kFloat32) {
    const Vec4 v = ldg(reinterpret_cast<const Vec4*>(static_cast<const float*>(x) + index));
    out[0] = float_of(v.x), out[1] = float_of(v.y), out[2] = float_of(v.z), out[3] = float_of(v.w);
  } else {
    const uint64_t v = ldg(reinterpret_cast<const uint64_t*>(static_cast<const uint16_t*>(x) + index));
    MOELA_UNROLL
    for (int i = 0; i < 4; ++i) {
      const auto half = static_cast<uint16_t>(v >> (16 * i));
      out[i] = kInput == QuantInput::kBFloat16 ? cvt_f32_of_bf16(half) : cvt_f32_of_f16(half);
    }
  }
}

// A group of 128 columns whose rows are aligned: read once, four columns a lane, kept in registers.
template <QuantInput kInput>
MOELA_DEVICE void quantize_128(const PerTokenGroupQuantFp8Params& p, int64_t group, int64_t m,
                               int64_t start) {
  float x[4];
  load_four<kInput>(p.x, m * p.ldx + start + 4 * lane(), x);
  const uint32_t amax = redux_max(larger(larger(magnitude_bits(x[0]), magnitude_bits(x[1])),
                                         larger(magnitude_bits(x[2]), magnitude_bits(x[3]))));
  const float sf = scale_factor(amax, p.ue8m0);
  if (lane() == 0) stg(p.sf + group, sf);
  const uint32_t low = cvt_e4m3x2(div_rn(x[0], sf), div_rn(x[1], sf));
  const uint32_t high = cvt_e4m3x2(div_rn(x[2], sf), div_rn(x[3], sf));
  stg(reinterpret_cast<uint32_t*>(p.q + m * p.K + start + 4 * lane()), low | high << 16);
}

// Computes sf and q of one group. Bound: memory, x is read once from DRAM (a second pass hits L1).
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
  if (p.takes_four && stop - start == 128) {
    quantize_128<kInput>(p, group, m, start);
    return;
  }

  uint32_t amax = 0;
  for (int64_t k = start + lane(); k < stop; k += C::kWarpSize) {
    amax = larger(amax, magnitude_bits(load_element<kInput>(p.x, m * p.ldx + k)));
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

LaunchStatus launch_per_token_group_quant_fp8(PerTokenGroupQuantFp8Params p, Stream stream) {
  const int64_t bytes = p.x_dtype == QuantInput::kFloat32 ? 4 : 2;
  p.takes_four = reinterpret_cast<uintptr_t>(p.x) % (4 * bytes) == 0 && p.ldx % 4 == 0 &&
                 reinterpret_cast<uintptr_t>(p.q) % 4 == 0 && p.K % 4 == 0 && p.group_size % 4 == 0;
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
