// per_token_group_quant_fp8 on Hopper.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/hopper/hopper.h"
#include "cuda/per_token_group_quant_fp8/per_token_group_quant_fp8.h"

namespace moela::cuda {
namespace {

constexpr int kWarpSize = 32;
constexpr int kWarpsPerBlock = 8;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }

// max(amax / 448, 2^-126); with ue8m0 rounded up to a power of two. NaN and Inf stay.
__device__ __forceinline__ float scale_factor(uint32_t amax, bool ue8m0) {
  const float exact = sm90::div_rn(__uint_as_float(amax), 448.f);
  const float sf = exact < 0x1p-126f ? 0x1p-126f : exact;
  const uint32_t u = __float_as_uint(sf);
  if (!ue8m0 || u >= 0x7F800000) return sf;
  return __uint_as_float((u + 0x7FFFFF) & 0x7F800000);
}

// Computes sf and q of one group. Bound: memory, x is read once from DRAM (the second pass hits L1).
// Grid: ceil(M * num_groups / kWarpsPerBlock) blocks; one warp owns one group.
// Invariant: every element of q and sf is written by exactly one warp; nothing beyond a row's K columns is
// read. Numerics: bit for bit the definition. As integers NaN > Inf > finite, so a NaN wins the maximum.
template <class T>
__global__ void __launch_bounds__(kWarpsPerBlock* kWarpSize)
    per_token_group_quant_fp8_kernel(const __grid_constant__ PerTokenGroupQuantFp8Params p) {
  const int lane = threadIdx.x % kWarpSize;
  const int64_t num_groups = (p.K + p.group_size - 1) / p.group_size;
  const int64_t group = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarpSize;
  if (group >= p.M * num_groups) return;
  const int64_t m = group / num_groups, start = group % num_groups * p.group_size;
  const int64_t stop = min(p.K, start + p.group_size);
  const T* x = static_cast<const T*>(p.x) + m * p.ldx;

  uint32_t amax = 0;
  for (int64_t k = start + lane; k < stop; k += kWarpSize)
    amax = max(amax, __float_as_uint(to_float(x[k])) & 0x7FFFFFFF);
  const float sf = scale_factor(sm90::redux_max(amax), p.ue8m0);
  if (lane == 0) p.sf[group] = sf;
  for (int64_t k = start + lane; k < stop; k += kWarpSize)
    p.q[m * p.K + k] = static_cast<uint8_t>(sm90::cvt_e4m3x2(sm90::div_rn(to_float(x[k]), sf), 0.f));
}

template <class T>
void launch(const PerTokenGroupQuantFp8Params& p, cudaStream_t stream) {
  const int64_t num_groups = p.M * ((p.K + p.group_size - 1) / p.group_size);
  const auto blocks = static_cast<unsigned>((num_groups + kWarpsPerBlock - 1) / kWarpsPerBlock);
  per_token_group_quant_fp8_kernel<T><<<blocks, kWarpsPerBlock * kWarpSize, 0, stream>>>(p);
}

}  // namespace

cudaError_t launch_per_token_group_quant_fp8(const PerTokenGroupQuantFp8Params& p, cudaStream_t stream) {
  switch (p.x_dtype) {
    case QuantInput::kFloat32: launch<float>(p, stream); break;
    case QuantInput::kBFloat16: launch<__nv_bfloat16>(p, stream); break;
    case QuantInput::kFloat16: launch<__half>(p, stream); break;
  }
  return cudaGetLastError();
}

}  // namespace moela::cuda
