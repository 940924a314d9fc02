// silu_and_mul_quant_fp8 on Hopper: one kernel for aligned rows and groups of 128, one for all others.
#pragma once

#include "cuda/block/quant.cuh"
#include "cuda/hopper/hopper.h"
#include "cuda/silu_and_mul_quant_fp8/silu_and_mul_quant_fp8.h"

namespace moela::cuda::sm90 {

struct SiluAndMulQuantFp8Config {
  static constexpr int kWarpSize = 32, kWarpsPerBlock = 8, kThreads = kWarpsPerBlock * kWarpSize;
  // The kernel for aligned rows: 16 lanes own a group, 8 columns each, which are 16 bytes of a narrow type.
  static constexpr int kLanes = 16, kColumns = 8, kGroup = kLanes * kColumns;
  static constexpr int kGroupsPerBlock = kThreads / kLanes;
};

// Float32, as silu_and_mul says. Where 2^.. overflows the quotient is 0; comparisons with NaN are false: it
// stays.
MOELA_DEVICE float swiglu(float gate, float up, const SiluAndMulQuantFp8Params& p) {
  const float g = gate > p.limit ? p.limit : gate;
  const float u = up > p.limit ? p.limit : up < -p.limit ? -p.limit : up;
  const float e = ex2_approx(-(p.alpha * g) * 0x1.715476p0f);  // log2(e)
  return div_rn(g, 1.f + e) * (u + p.shift);
}

// kColumns elements from `index` on, as float32.
template <QuantInput kInput>
MOELA_DEVICE void load_columns(const void* x, int64_t index,
                               float (&out)[SiluAndMulQuantFp8Config::kColumns]) {
  if constexpr (kInput == QuantInput::kFloat32) {
    const Vec4* from = reinterpret_cast<const Vec4*>(static_cast<const float*>(x) + index);
    const Vec4 low = ldg_nc(from), high = ldg_nc(from + 1);
    const uint32_t words[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    MOELA_UNROLL
    for (int i = 0; i < 8; ++i) out[i] = float_of(words[i]);
  } else {
    const Vec4 v = ldg_nc(reinterpret_cast<const Vec4*>(static_cast<const uint16_t*>(x) + index));
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
    MOELA_UNROLL
    for (int i = 0; i < 8; ++i) {
      const auto half = static_cast<uint16_t>(words[i / 2] >> (i % 2 * 16));
      out[i] = kInput == QuantInput::kBFloat16 ? cvt_f32_of_bf16(half) : cvt_f32_of_f16(half);
    }
  }
}

// Computes sf and q of groups of 128. Bound: memory, x is read once and y stays in registers.
// Grid: ceil(M * num_groups / kGroupsPerBlock) blocks; half a warp owns one group.
// Invariant: K is a multiple of 8 and rows are aligned (is_aligned below), so that a lane's 8 columns are all
// in the row or all beyond it; lanes without columns take part in the exchange with zeros, which change no
// maximum. Numerics: as integers NaN > Inf > finite, so a NaN wins the maximum. Source: the definition.
template <QuantInput kInput>
MOELA_KERNEL(SiluAndMulQuantFp8Config::kThreads)
silu_and_mul_quant_fp8_kernel(MOELA_PARAM SiluAndMulQuantFp8Params p) {
  using C = SiluAndMulQuantFp8Config;
  const int64_t num_groups = (p.K + C::kGroup - 1) / C::kGroup;
  const int64_t group = static_cast<int64_t>(block()) * C::kGroupsPerBlock + tid() / C::kLanes;
  const int lane_of_group = tid() % C::kLanes;
  const int64_t m = group / num_groups, k = group % num_groups * C::kGroup + lane_of_group * C::kColumns;
  const bool is_live = group < p.M * num_groups, has_columns = is_live && k < p.K;

  float y[C::kColumns] = {};
  uint32_t amax = 0;
  if (has_columns) {
    float up[C::kColumns];
    load_columns<kInput>(p.x, m * p.ldx + k, y);
    load_columns<kInput>(p.x, m * p.ldx + p.K + k, up);
    MOELA_UNROLL
    for (int i = 0; i < C::kColumns; ++i) {
      y[i] = swiglu(y[i], up[i], p);
      amax = larger(amax, magnitude_bits(y[i]));
    }
  }
  MOELA_UNROLL
  for (int mask = C::kLanes / 2; mask > 0; mask /= 2) {
    amax = larger(amax, shfl_xor(amax, mask));
  }
  const float sf = scale_factor(amax, p.ue8m0);
  if (is_live && lane_of_group == 0) stg(p.sf + group, sf);
  if (!has_columns) return;
  uint64_t codes = 0;
  MOELA_UNROLL
  for (int i = 0; i < C::kColumns; i += 2) {
    codes |= static_cast<uint64_t>(cvt_e4m3x2(div_rn(y[i], sf), div_rn(y[i + 1], sf))) << (i * 8);
  }
  stg(reinterpret_cast<uint64_t*>(p.q + m * p.K + k), codes);
}

// The same for any group size, K and alignment. Bound: memory, and twice the arithmetic: y is computed once
// for the maximum and once for the cast, the second time from L1.
// Grid: ceil(M * num_groups / kWarpsPerBlock) blocks; one warp owns one group.
// Invariant: nothing beyond a row's K columns of either half is read. Source: the definition.
template <QuantInput kInput>
MOELA_KERNEL(SiluAndMulQuantFp8Config::kThreads)
any_silu_and_mul_quant_fp8_kernel(MOELA_PARAM SiluAndMulQuantFp8Params p) {
  using C = SiluAndMulQuantFp8Config;
  const int64_t num_groups = (p.K + p.group_size - 1) / p.group_size;
  const int64_t group = static_cast<int64_t>(block()) * C::kWarpsPerBlock + warp();
  if (group >= p.M * num_groups) return;
  const int64_t m = group / num_groups, start = group % num_groups * p.group_size;
  const int64_t stop = p.K < start + p.group_size ? p.K : start + p.group_size;
  const auto y_of = [&](int64_t k) {
    const int64_t gate = m * p.ldx + k;
    return swiglu(load_element<kInput>(p.x, gate), load_element<kInput>(p.x, gate + p.K), p);
  };

  uint32_t amax = 0;
  for (int64_t k = start + lane(); k < stop; k += C::kWarpSize) {
    amax = larger(amax, magnitude_bits(y_of(k)));
  }
  const float sf = scale_factor(redux_max(amax), p.ue8m0);
  if (lane() == 0) stg(p.sf + group, sf);
  for (int64_t k = start + lane(); k < stop; k += C::kWarpSize) {
    stg(p.q + m * p.K + k, static_cast<uint8_t>(cvt_e4m3x2(div_rn(y_of(k), sf), 0.f)));
  }
}

// Whether every lane's 8 columns are whole 16-byte pieces of x, and its 8 codes one aligned word of q.
inline bool is_aligned(const SiluAndMulQuantFp8Params& p) {
  const int64_t element_bytes = p.x_dtype == QuantInput::kFloat32 ? 4 : 2;
  return p.group_size == SiluAndMulQuantFp8Config::kGroup && p.K % SiluAndMulQuantFp8Config::kColumns == 0 &&
         reinterpret_cast<uintptr_t>(p.x) % 16 == 0 && p.ldx * element_bytes % 16 == 0 &&
         reinterpret_cast<uintptr_t>(p.q) % 8 == 0;
}

template <QuantInput kInput>
LaunchStatus launch_for(const SiluAndMulQuantFp8Params& p, Stream stream) {
  using C = SiluAndMulQuantFp8Config;
  const int64_t num_groups = p.M * ((p.K + p.group_size - 1) / p.group_size);
  const bool aligned = is_aligned(p);
  const int per_block = aligned ? C::kGroupsPerBlock : C::kWarpsPerBlock;
  const LaunchShape shape = {.grid = static_cast<int>((num_groups + per_block - 1) / per_block),
                             .block = C::kThreads};
  if (aligned) return launch(shape, stream, &silu_and_mul_quant_fp8_kernel<kInput>, p);
  return launch(shape, stream, &any_silu_and_mul_quant_fp8_kernel<kInput>, p);
}

}  // namespace moela::cuda::sm90

namespace moela::cuda {

LaunchStatus launch_silu_and_mul_quant_fp8(const SiluAndMulQuantFp8Params& p, Stream stream) {
  switch (p.x_dtype) {
    case QuantInput::kFloat32: return sm90::launch_for<QuantInput::kFloat32>(p, stream);
    case QuantInput::kBFloat16: return sm90::launch_for<QuantInput::kBFloat16>(p, stream);
    default: return sm90::launch_for<QuantInput::kFloat16>(p, stream);
  }
}

}  // namespace moela::cuda
